"""Gemma 3, its text: windowed and full layers with a rope each, norms on both sides and on q and k, GELU.

Maths as in `Gemma3ForCausalLM`. Embeddings are scaled; norms multiply by one more than what is stored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tokenvm.models.families.recipe import Recipe, Ropes, Windows, layer_kinds, layers_of
from tokenvm.models.families.ropes import rope_from
from tokenvm.models.fields import Fields

_PATTERN: Final = 6
_WINDOW: Final = 4096


def _windows(fields: Fields) -> Windows:
    every = fields.count("sliding_window_pattern", _PATTERN)
    usual = tuple(layer for layer in range(fields.count("num_hidden_layers")) if (layer + 1) % every)
    kinds = layer_kinds(fields)
    return Windows(
        fields.count("sliding_window", _WINDOW), layers_of(kinds, "sliding_attention") if kinds else usual
    )


def _ropes(fields: Fields, head_dim: int) -> Ropes:
    both = fields.section("rope_parameters")
    full, local = both.section("full_attention"), both.section("sliding_attention")
    if not both.values:
        full = fields.section("rope_scaling")
    full_theta = full.number("rope_theta", fields.number("rope_theta", 1_000_000.0))
    local_theta = local.number("rope_theta", fields.number("rope_local_base_freq", 10_000.0))
    return Ropes(
        rope_from(fields, full, head_dim, full_theta), rope_from(fields, local, head_dim, local_theta)
    )


GEMMA3: Final = Recipe(
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    windows=_windows,
    ropes=_ropes,
    scale=lambda fields, _: float(fields.number("query_pre_attn_scalar", 256) ** -0.5),
    qk_norm=True,
    sandwich=True,
    norm_offset=1.0,
    embedding_scaled=True,
    tied=True,
    activation="gelu_pytorch_tanh",
    activation_key="hidden_activation",
    head_dim=256,
    max_positions=131072,
    refused=("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"),
)

GEMMA3_VISION: Final = replace(
    GEMMA3,
    architecture="Gemma3ForConditionalGeneration",
    model_type="gemma3",
    section="text_config",
    prefix="language_model.",
    beside=("vision_tower.", "multi_modal_projector."),
    defaults=(
        ("vocab_size", 262_208),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("bos_token_id", 2),
        ("eos_token_id", 1),
    ),
)
"""The text model inside the ones that also see: 4B and larger. Images are not taken."""
