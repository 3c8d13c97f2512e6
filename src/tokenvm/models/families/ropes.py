"""Reading rope settings from a config.json, in the spellings that Hugging Face has had for them."""

from __future__ import annotations

import math
from typing import Any, Final

from tokenvm.errors import ModelError, UnsupportedModel
from tokenvm.models.fields import Fields
from tokenvm.models.spec import RopeSpec

KINDS: Final = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def rope_of(fields: Fields, head_dim: int, theta: float = 10000.0) -> RopeSpec:
    """Read either spelling: rope_theta with rope_scaling, or rope_parameters that hold both.

    `theta` is the family's default. Raises ModelError for what is malformed, UnsupportedModel for another kind.
    """
    old = not fields.has("rope_parameters")
    scaling = fields.section("rope_scaling" if old else "rope_parameters")
    base = fields.number("rope_theta", theta)
    return rope_from(fields, scaling, head_dim, base if old else scaling.number("rope_theta", base))


def rope_from(fields: Fields, scaling: Fields, head_dim: int, theta: float) -> RopeSpec:
    """Read one set of rope parameters; `fields` is the whole config."""
    kind = scaling.name("rope_type", scaling.name("type", "default"))
    shared: dict[str, Any] = {"theta": theta, "rotary_dim": _rotary_dim(fields, scaling, head_dim)}
    if kind in (
        "default",
        "dynamic",
    ):  # dynamic: the same up to max_position_embeddings, beyond which nothing runs
        return RopeSpec(**shared)
    if kind == "linear":
        return RopeSpec(**shared, kind="linear", factor=scaling.number("factor"))
    if kind == "llama3":
        return _llama3(shared, scaling)
    if kind == "yarn":
        return _yarn(shared, fields, scaling)
    if kind in ("longrope", "su"):
        return _longrope(shared, fields, scaling, head_dim)
    raise UnsupportedModel(
        f"{fields.source}: rope type {kind!r}; supported are {', '.join(map(repr, KINDS))}: pass another model"
    )


def _rotary_dim(fields: Fields, scaling: Fields, head_dim: int) -> int:
    factor = scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    turning = int(head_dim * factor)
    if not 0 < turning <= head_dim or turning % 2:
        raise fields.wrong("partial_rotary_factor", factor, f"a share of head_dim ({head_dim}) that is even")
    return 0 if turning == head_dim else turning


def _llama3(shared: dict[str, Any], scaling: Fields) -> RopeSpec:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.wrong("high_freq_factor", high, f"more than low_freq_factor ({low})")
    return RopeSpec(
        **shared,
        kind="llama3",
        factor=scaling.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=scaling.count("original_max_position_embeddings"),
    )


def _yarn(shared: dict[str, Any], fields: Fields, scaling: Fields) -> RopeSpec:
    longest = fields.count("max_position_embeddings", 2048)
    original = _original(fields, scaling, longest)
    factor = scaling.number("factor", longest / original)
    return RopeSpec(
        **shared,
        kind="yarn",
        factor=factor,
        original_max_positions=original,
        attention_factor=scaling.number("attention_factor", _yarn_attention(scaling, factor)),
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        truncate=scaling.flag("truncate", True),
    )


def _yarn_attention(scaling: Fields, factor: float) -> float:
    def magnitude(share: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0

    if scaling.values.get("mscale") and scaling.values.get("mscale_all_dim"):
        return magnitude(scaling.number("mscale")) / magnitude(scaling.number("mscale_all_dim"))
    return magnitude(1.0)


def _longrope(shared: dict[str, Any], fields: Fields, scaling: Fields, head_dim: int) -> RopeSpec:
    longest = fields.count("max_position_embeddings", 2048)
    original = _original(fields, scaling, longest)
    factor = scaling.number("factor", longest / original)
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    pairs = (shared["rotary_dim"] or head_dim) // 2
    return RopeSpec(
        **shared,
        kind="longrope",
        original_max_positions=original,
        attention_factor=scaling.number("attention_factor", usual),
        short_factors=_factors(scaling, "short_factor", pairs),
        long_factors=_factors(scaling, "long_factor", pairs),
    )


def _original(fields: Fields, scaling: Fields, longest: int) -> int:
    """The length a model was trained for: the config's own key comes before the rope's, as in Hugging Face."""
    inner = scaling.count("original_max_position_embeddings", longest)
    return fields.count("original_max_position_embeddings", inner)


def _factors(scaling: Fields, key: str, pairs: int) -> tuple[float, ...]:
    value = scaling.values.get(key)
    good = isinstance(value, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and one > 0 for one in value
    )
    if not isinstance(value, list) or not good or len(value) != pairs:
        raise ModelError(
            f"{scaling.source}: {key} must be a list of {pairs} positive numbers: use an unmodified copy of the model"
        )
    return tuple(float(one) for one in value)
