"""Phi-3 and Phi-4-mini: Llama with fused projections, a window, part of a head rotating, and long rope factors.

Maths as in `Phi3ForCausalLM`, but that the rope factors are chosen once for an engine (decision 0031).
"""

from __future__ import annotations

from typing import Final

from tokenvm.models.families.recipe import Recipe, Ropes, window_everywhere
from tokenvm.models.families.ropes import rope_from, rope_of
from tokenvm.models.fields import Fields

_OLD_NAMES: Final = ("su", "yarn")
"""What the first releases called longrope."""


def _ropes(fields: Fields, head_dim: int) -> Ropes:
    key = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    scaling = fields.section(key)
    if scaling.values.get("type", scaling.values.get("rope_type")) not in _OLD_NAMES:
        return Ropes(rope_of(fields, head_dim))
    renamed = Fields({**scaling.values, "rope_type": "longrope"}, scaling.source)
    theta = scaling.number("rope_theta", fields.number("rope_theta", 10000.0))
    return Ropes(rope_from(fields, renamed, head_dim, theta))


PHI3: Final = Recipe(
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    windows=window_everywhere,
    ropes=_ropes,
    fused=True,
    partial_rotary=True,
    qkv_bias=lambda _: False,
    out_bias=lambda _: False,
    rms_eps=1e-5,
    max_positions=4096,
)
