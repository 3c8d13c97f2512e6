"""Llama: rotary attention with grouped keys, RMS norms, a SiLU-gated MLP. Maths as in `LlamaForCausalLM`."""

from __future__ import annotations

from typing import Final

from tokenvm.models.families.recipe import Recipe

LLAMA: Final = Recipe(architecture="LlamaForCausalLM", model_type="llama")
