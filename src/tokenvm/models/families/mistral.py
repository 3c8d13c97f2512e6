"""Mistral: Llama whose layers see a window of tokens. Maths as in `MistralForCausalLM`."""

from __future__ import annotations

from typing import Final

from tokenvm.models.families.recipe import Recipe, window_everywhere

MISTRAL: Final = Recipe(
    architecture="MistralForCausalLM",
    model_type="mistral",
    windows=window_everywhere,
    qkv_bias=lambda _: False,
    out_bias=lambda _: False,
    max_positions=131072,
    refused=("layer_types",),
)
