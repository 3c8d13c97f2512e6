"""What a config asks for and its native family has not is refused by name, with an error of its own."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures_families import FAMILIES

from tokenvm.errors import ModelError, UnsupportedModel
from tokenvm.models.registry import family_of
from tokenvm.models.spec import ModelSpec

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def spec(name: str, **changes: Any) -> ModelSpec:
    config = FAMILIES[name].make().config.to_dict() | changes
    return family_of(config, "config.json").spec_from_config(config, "config.json")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("mistral", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("qwen2", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["linear"] * 3},
            "layer_types",
        ),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen2", {"rope_parameters": {"rope_type": "ntk", "rope_theta": 1e4}}, "rope type 'ntk'"),
    ],
    ids=str,
)
def test_what_the_decoder_has_not_is_unsupported(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        spec(name, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("phi3", {"rope_parameters": LONGROPE | {"short_factor": [1.0]}}, "short_factor must be a list of 8"),
        (
            "phi3",
            {"rope_parameters": LONGROPE | {"long_factor": [0.0] * 8}},
            "long_factor must be a list of 8",
        ),
        ("mistral", {"sliding_window": -1}, "sliding_window is -1"),
        ("gemma3", {"layer_types": ["full_attention"]}, "one kind for each layer"),
    ],
    ids=str,
)
def test_what_is_malformed_is_a_model_error(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        spec(name, **changes)
    assert not isinstance(caught.value, UnsupportedModel)


def test_older_spellings_mean_the_same() -> None:
    gemma = FAMILIES["gemma3"].make().config.to_dict()
    del gemma["rope_parameters"], gemma["layer_types"]
    old = gemma | {
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
    }
    found = family_of(old, "").spec_from_config(old, "")
    assert (found.rope.theta, found.rope.kind, found.rope.factor) == (5e5, "linear", 8.0)
    assert found.local_rope is not None
    assert (found.local_rope.theta, found.local_rope.kind) == (2e4, "default")
    assert found.windowed == (0, 2)
    assert [(group.rule, group.layers) for group in found.kv_groups] == [("full", (1,)), ("window", (0, 2))]
    phi = spec("phi3", rope_parameters=None, rope_scaling=LONGROPE | {"rope_type": None, "type": "su"})
    assert phi.rope.kind == "longrope"


def test_a_released_gemma_leaves_out_what_is_usual() -> None:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "text_config": text,
    }
    found = family_of(config, "").spec_from_config(config, "")
    assert (found.attention.q_heads, found.attention.kv_heads, found.attention.head_dim) == (8, 4, 256)
    assert (found.vocab_size, found.max_model_len, found.attention.scale) == (262_208, 131_072, 1 / 16)
    assert (found.eos_token_ids, found.bos_token_ids, found.tied_embeddings) == ((1, 106), (2,), True)
    assert found.rope.kind == "linear"
    assert found.windowed[:6] == (0, 1, 2, 3, 4, 6)


def test_longrope_chooses_its_factors_by_what_an_engine_takes() -> None:
    rope = spec("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=100).rope
    assert rope.resolved(100).short_factors == (1.0,) * 8
    assert rope.resolved(101).short_factors == (2.0,) * 8
    assert rope.attention_factor > 1
