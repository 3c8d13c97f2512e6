"""config.json becomes a spec, or is refused with the key's name."""

import json
from pathlib import Path

import pytest
import torch
from tiny import CONFIG

from tokenvm.errors import ConfigError, ModelError
from tokenvm.models.families.llama import LLAMA
from tokenvm.models.registry import family_of, load_spec
from tokenvm.models.spec import KVGroup, ModelSpec, RopeSpec

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def spec(**changes: object) -> ModelSpec:
    return LLAMA.spec_from_config(CONFIG | changes, "config.json")


def test_smollm2_has_the_geometry_its_card_says() -> None:
    smollm2 = LLAMA.spec_from_config(SMOLLM2, "config.json")
    assert smollm2.attention.head_dim == 64
    assert smollm2.attention.scale == 0.125
    assert smollm2.attention.qkv_rows == 960
    assert smollm2.rope == RopeSpec(theta=100000.0)
    assert smollm2.kv_bytes_per_token(torch.bfloat16) == 23040
    assert smollm2.default_block_tokens() == 128
    assert smollm2.kv_groups == (KVGroup("full", tuple(range(30)), "full"),)
    weights = sum(torch.Size(shape).numel() for _, shape in LLAMA.tensor_shapes(smollm2))
    assert weights == 134_515_008


@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "tokens"),
    [(32, 128, 16), (8, 128, 16), (4, 128, 32), (3, 64, 128), (1, 64, 256), (1, 8, 256)],
)
def test_auto_block_tokens_fill_64_kib_within_bounds(kv_heads: int, head_dim: int, tokens: int) -> None:
    heads = 4 * kv_heads
    found = spec(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim)
    assert found.default_block_tokens() == tokens


def test_a_page_is_a_part_per_layer_each_aligned() -> None:
    tiny = spec()
    assert tiny.part_bytes(16, torch.bfloat16) == 2 * 2 * 16 * 16 * 2
    assert tiny.page_bytes(16, torch.bfloat16) == 2 * 4096
    assert tiny.page_bytes(48, torch.bfloat16) == 2 * 8192


@pytest.mark.parametrize("tokens", [0, 8, 24, 272, -16])
def test_impossible_block_tokens_are_refused(tokens: int) -> None:
    with pytest.raises(ConfigError, match=r'block_tokens="auto" \(256'):
        spec().check_block_tokens(tokens)


def test_possible_block_tokens_are_accepted() -> None:
    for tokens in (16, 48, 256):
        spec().check_block_tokens(tokens)


def test_absent_keys_have_the_defaults_of_hugging_face() -> None:
    config = {
        key: SMOLLM2[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    }
    found = LLAMA.spec_from_config(config | {"num_attention_heads": 9}, "config.json")
    assert found.attention.kv_heads == 9
    assert found.norm.eps == 1e-6
    assert found.max_model_len == 2048
    assert found.rope == RopeSpec(theta=10000.0)
    assert not found.tied_embeddings
    assert found.eos_token_ids == found.bos_token_ids == ()


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_both_spellings_of_rope_are_read(key: str) -> None:
    scaling = {"type": "linear", "factor": 4, "rope_theta": 5000.0}
    expected = 5000.0 if key == "rope_parameters" else 777.0
    assert spec(**{key: scaling, "rope_theta": 777.0}).rope == RopeSpec(expected, "linear", factor=4.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "rope type 'ntk'"),
        ({"layer_types": ["full_attention"]}, "one kind for each layer"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.1}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"eos_token_id": [2, "3"]}, "eos_token_id"),
    ],
    ids=str,
)
def test_what_is_not_covered_is_refused_by_name(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        spec(**changes)
    assert str(caught.value).startswith("config.json")


def test_llama3_bands_must_be_in_order() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}
    with pytest.raises(ModelError, match="more than low_freq_factor"):
        spec(rope_scaling=rope | {"original_max_position_embeddings": 64})


def test_unknown_architectures_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"'MambaForCausalLM'.*LlamaForCausalLM"):
        family_of({"architectures": ["MambaForCausalLM"]}, "config.json")
    with pytest.raises(ModelError, match="no native family"):
        family_of({}, "config.json")


def test_the_model_type_stands_in_for_the_architecture() -> None:
    assert family_of({"model_type": "llama"}, "") is family_of({"architectures": ["LlamaForCausalLM"]}, "")


def test_end_tokens_of_both_files_are_joined(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert load_spec(tmp_path)[0].eos_token_ids == (2, 7)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "null"])
def test_a_damaged_config_is_a_model_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config\.json"):
        load_spec(tmp_path)


def test_a_missing_config_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_spec(tmp_path)
