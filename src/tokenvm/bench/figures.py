"""Statistics of measurements and the counts they are held against. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenvm.models.spec import ModelSpec


class Spread(NamedTuple):
    """The smallest, the middle and the largest of some values."""

    low: float
    mid: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return how far values reach around their median; there must be one at least."""
    return Spread(min(values), statistics.median(values), max(values))


def paired_ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the spread of above[i] / below[i]: two things measured in the same round are compared there only."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a curve first passes a level. Not passed: `at` is as far as was measured."""

    passed: bool
    at: float


def crossing(points: Sequence[tuple[float, float]], level: float) -> Crossing:
    """Return the x at which the line through (x, y) points, in order of x, first rises above `level`."""
    before_x, before_y = points[0]
    if before_y > level:
        return Crossing(True, before_x)
    for x, y in points[1:]:
        if y > level:
            return Crossing(True, before_x + (x - before_x) * (level - before_y) / (y - before_y))
        before_x, before_y = x, y
    return Crossing(False, before_x)


def matrix_parameters(spec: ModelSpec) -> int:
    """Return the parameters of all layers' matrices; embedding and head are not among them."""
    heads, hidden = spec.attention, spec.hidden
    attention = (heads.qkv_rows + heads.out_columns) * hidden
    return spec.layers * (attention + 3 * spec.mlp.intermediate * hidden)


def prefill_operations(spec: ModelSpec, tokens: int) -> int:
    """Return the useful multiplications and additions of reading `tokens` tokens and choosing one.

    Two for each matrix parameter and token, the head once, and of attention what rows see: each row's products with the
    keys and the values of itself and of what precedes it, as far as the layer's window reaches.
    """
    matrices = 2 * tokens * matrix_parameters(spec) + 2 * spec.hidden * spec.vocab_size
    return matrices + 4 * spec.attention.out_columns * _seen_pairs(spec, tokens)


def seen_tokens(spec: ModelSpec, context: int) -> int:
    """Return how many tokens one row at the end of `context` tokens sees, added up over the layers."""
    return sum(min(context, spec.window_of(layer) or context) for layer in range(spec.layers))


def _seen_pairs(spec: ModelSpec, tokens: int) -> int:
    """Pairs of a row and a token that it sees, added up over the layers."""
    widths = [min(tokens, spec.window_of(layer) or tokens) for layer in range(spec.layers)]
    return sum(width * (width + 1) // 2 + (tokens - width) * width for width in widths)


def step_bytes(weight_bytes: int, kv_bytes_per_token: int, context: int) -> int:
    """Return what a decode step at `context` tokens reads of memory at least: all weights and all KV, once."""
    return weight_bytes + kv_bytes_per_token * context
