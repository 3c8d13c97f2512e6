"""Qwen2 (Llama with biases on q, k and v) and Qwen3 (with norms on q and k); either may window its last layers."""

from __future__ import annotations

from typing import Final

from tokenvm.models.families.recipe import Recipe, Windows, layer_kinds, layers_of
from tokenvm.models.fields import Fields


def _last_layers(fields: Fields) -> Windows:
    if not fields.flag("use_sliding_window", False) or not fields.has("sliding_window"):
        return Windows()
    kinds = layer_kinds(fields)
    count = fields.count("num_hidden_layers")
    usual = tuple(range(min(count, fields.values.get("max_window_layers", 28)), count))
    layers = layers_of(kinds, "sliding_attention") if kinds else usual
    return Windows(fields.count("sliding_window"), layers)


QWEN2: Final = Recipe(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    windows=_last_layers,
    qkv_bias=lambda _: True,
    out_bias=lambda _: False,
    max_positions=32768,
)

QWEN3: Final = Recipe(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    windows=_last_layers,
    qk_norm=True,
    head_dim=128,
    max_positions=32768,
)
