"""Tiny random models: as Hugging Face writes them, and the same as a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def llama(**changes: Any) -> LlamaForCausalLM:
    """A random float32 Llama, the same for the same configuration."""
    torch.manual_seed(0)
    config = LlamaConfig(**(CONFIG | changes), attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    return model


def save(model: LlamaForCausalLM, folder: Path, **options: Any) -> Path:
    """Write config.json and safetensors."""
    model.save_pretrained(folder, **options)
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def bpe_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level tokenizer of the SmolLM kind: all bytes, a few merges, three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ġw", "o"), ("Ċ", "Ċ")]
    tokens = [*SPECIAL, *alphabet, *(left + right for left, right in merges)]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    )
    return tokenizer


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    metadata: dict[str, Any] | None = None,
    rename: dict[str, str] | None = None,
) -> Path:
    """Write a model as llama.cpp's converter does; `metadata` adds or replaces keys, `rename` tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (_metadata(model.config) | (metadata or {})).items():
        _add(writer, key, value)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = _as_stored(name, weight, model.config)
        stored = gguf.quants.quantize(array, kind) if array.ndim == 2 else array
        target = gguf_name(name)
        writer.add_tensor(
            (rename or {}).get(target, target), stored, raw_dtype=kind if array.ndim == 2 else None
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor of a Hugging Face Llama."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 8)
    found = names.get_name(name, try_suffixes=(".weight",))
    assert found is not None, name
    return found


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row order llama.cpp gives query and key projections."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _as_stored(name: str, weight: torch.Tensor, config: LlamaConfig) -> np.ndarray:
    array = weight.detach().numpy().copy()
    if name.endswith("q_proj.weight"):
        return permuted(array, config.num_attention_heads)
    if name.endswith("k_proj.weight"):
        return permuted(array, config.num_key_value_heads)
    return array


def _metadata(config: LlamaConfig) -> dict[str, Any]:
    vocabulary = json.loads(bpe_tokenizer().to_str())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    return {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in vocabulary["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
