"""A GGUF file of each native family, as llama.cpp's converter writes it, becomes the model it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from fixtures_families import FAMILIES, PAIRS
from test_families import TOKENS, logits
from tiny import bpe_tokenizer
from transformers import PreTrainedModel

from tokenvm.errors import ModelError
from tokenvm.models.progress import silent
from tokenvm.models.weights.gguf import convert
from tokenvm.models.weights.gguf_families import GGUF_FAMILIES
from tokenvm.models.weights.pack import load_model

Kind = gguf.GGMLQuantizationType
ARCH = {
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}
MORE: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"attention.key_length": 32, "attention.value_length": 32},
    "phi3": {"attention.sliding_window": 24, "rope.dimension_count": 16},
    "gemma3": {"attention.key_length": 32, "attention.sliding_window": 24, "rope.freq_base": 1000000.0},
}


def write(
    path: Path, architecture: str, model: PreTrainedModel, more: dict[str, Any], **tensors: Any
) -> Path:
    """Write a model in llama.cpp's names; `tensors` come on top, named as in GGUF but for the ".weight"."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    numbers = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        **more,
    }
    for key, value in numbers.items():
        if isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        else:
            add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
            add(f"{architecture}.{key}", value)
    writer.add_string("tokenizer.ggml.model", "none")
    names = gguf.get_tensor_name_map(ARCH[architecture], config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        array = weight.numpy() + (1.0 if architecture == "gemma3" and "norm" in name else 0.0)
        writer.add_tensor(target, array.astype(np.float32))
    for name, values in tensors.items():
        writer.add_tensor(f"{name}.weight", np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    bpe_tokenizer().save(str(path.with_name("tokenizer.json")))
    return path


def rounded(model: PreTrainedModel) -> PreTrainedModel:
    """The same with matrices rounded as the converter rounds them."""
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data = weight.data.bfloat16().float()
    return model


def found(source: Path) -> torch.Tensor:
    folder = source.with_name("out")
    folder.mkdir()
    convert(source, folder, silent)
    return logits(load_model(folder, "float32"), [len(TOKENS)])


def expected(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(TOKENS[None]).logits[0]
    return out


@pytest.mark.parametrize("architecture", ARCH)
def test_a_converted_file_is_the_model(architecture: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {}
    if architecture == "gemma3":  # what GGUF files of Gemma 3 take for granted
        changes = {"layer_types": ["sliding_attention"] * 3, "query_pre_attn_scalar": 32}
    model = rounded(FAMILIES[architecture].make(**changes))
    source = write(tmp_path / "m.gguf", architecture, model, MORE[architecture])
    whole = expected(model)
    assert (found(source) - whole).abs().max() <= 2e-4 * whole.abs().max()


def test_long_rope_factors_of_phi3_are_read(tmp_path: Path) -> None:
    model = rounded(FAMILIES["phi3, longrope, part of a head rotates"].make())
    more = {"rope.dimension_count": 12, "rope.scaling.original_context_length": 128}
    factors = {"rope_factors_short": PAIRS[:6], "rope_factors_long": PAIRS[:6]}
    whole = expected(model)
    source = write(tmp_path / "m.gguf", "phi3", model, more, **factors)
    assert (found(source) - whole).abs().max() <= 2e-4 * whole.abs().max()


def test_divided_frequencies_are_read(tmp_path: Path) -> None:
    """Where a file says how to divide each frequency, as those of Llama 3.1 do, all of them by 4 is linear scaling."""
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    model = rounded(FAMILIES["qwen2"].make(rope_parameters=rope))
    whole = expected(model)
    source = write(tmp_path / "m.gguf", "qwen2", model, {}, rope_freqs=[4.0] * 8)
    assert (found(source) - whole).abs().max() <= 2e-4 * whole.abs().max()


@pytest.mark.parametrize(
    ("more", "tensors", "said"),
    [
        ({"expert_count": 8}, {}, r"qwen2\.expert_count is 8"),
        ({"rope.dimension_count": 8}, {}, r"rope\.dimension_count is 8"),
        ({"rope.scaling.type": "yarn"}, {}, "rope scaling 'yarn'"),
        ({}, {"rope_freqs": [1.0]}, r"rope_freqs\.weight has shape \[1\], not \[8\]"),
        ({}, {"blk.0.ffn_gate_inp": [1.0]}, "ffn_gate_inp.weight is not part of a model of type 'qwen2'"),
        ({"block_count": 2}, {}, r"blk\.2"),
    ],
    ids=str,
)
def test_what_is_not_covered_is_refused_by_name(
    more: dict[str, Any], tensors: dict[str, Any], said: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "m.gguf", "qwen2", FAMILIES["qwen2"].make(), more, **tensors)
    with pytest.raises(ModelError, match=said) as caught:
        found(source)
    assert str(source) in str(caught.value)


def test_every_kind_of_file_is_among_them() -> None:
    assert {"llama", *ARCH} == {family.architecture for family in GGUF_FAMILIES}
