"""Tiny random models of every native family, as Hugging Face makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 97
COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PAIRS = [1.0 + 0.25 * at for at in range(8)]


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


@dataclass(frozen=True)
class Tiny:
    """A class of models, and what its configuration has beside the common."""

    config: type
    model: type
    more: Mapping[str, Any] = field(default_factory=dict)

    def make(self, **changes: Any) -> PreTrainedModel:
        """The model, random and float32, the same every time; its norms and biases are random too."""
        torch.manual_seed(0)
        keys = {**COMMON, **self.more, **changes}
        beside = {name: keys.pop(name) for name in ("vision_config", "mm_tokens_per_image") if name in keys}
        if beside:
            keys = {"text_config": keys, **beside}
        config = self.config(**keys, attn_implementation="eager")
        model = self.model(config).eval()
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.data.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.data.uniform_(-1, 1)
        return model


WINDOWED = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
FAMILIES: Mapping[str, Tiny] = {
    "llama": Tiny(LlamaConfig, LlamaForCausalLM),
    "llama, biases": Tiny(LlamaConfig, LlamaForCausalLM, {"attention_bias": True}),
    "llama, llama3 rope": Tiny(
        LlamaConfig,
        LlamaForCausalLM,
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama, yarn": Tiny(
        LlamaConfig, LlamaForCausalLM, _rope("yarn", factor=4.0, original_max_position_embeddings=128)
    ),
    "llama, dynamic rope": Tiny(LlamaConfig, LlamaForCausalLM, _rope("dynamic", factor=4.0)),
    "mistral": Tiny(MistralConfig, MistralForCausalLM, {"sliding_window": 24}),
    "mistral, no window": Tiny(MistralConfig, MistralForCausalLM, {"sliding_window": None, "head_dim": 32}),
    "qwen2": Tiny(Qwen2Config, Qwen2ForCausalLM),
    "qwen2, windows": Tiny(Qwen2Config, Qwen2ForCausalLM, WINDOWED),
    "qwen2, yarn, tied": Tiny(
        Qwen2Config,
        Qwen2ForCausalLM,
        _rope("yarn", factor=4.0, original_max_position_embeddings=128) | {"tie_word_embeddings": True},
    ),
    "qwen3": Tiny(Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
    "qwen3, biases, windows": Tiny(
        Qwen3Config, Qwen3ForCausalLM, WINDOWED | {"head_dim": 16, "attention_bias": True}
    ),
    "phi3": Tiny(Phi3Config, Phi3ForCausalLM, {"sliding_window": 24}),
    "phi3, longrope, part of a head rotates": Tiny(
        Phi3Config,
        Phi3ForCausalLM,
        _rope("longrope", short_factor=PAIRS[:6], long_factor=PAIRS[:6], partial_rotary_factor=0.75)
        | {"original_max_position_embeddings": 128},
    ),
    "gemma3": Tiny(
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "head_dim": 32,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3, the text of one that sees": Tiny(
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        {
            "head_dim": 32,
            "sliding_window": 24,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        },
    ),
    "gemma3, scaled rope, untied": Tiny(
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "head_dim": 32,
            "sliding_window": 40,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
    ),
}
"""Name → model; together they take every turn of the native decoder."""
