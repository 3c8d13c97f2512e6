"""How likely the tokens of a prompt were, from the logits of the rows before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenvm.engine.sampling.choice import Choice, describe
from tokenvm.schedule.plan import Plan, Span


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Which rows of a step want logits: of a span that scores all, else the last one if it samples.

    `rows` are their places among the plan's tokens, ascending: the step's logits are fp32 [len(rows), vocab] in that
    order. `sampled` are the places of the sampling rows in these logits, in the order of `plan.sampled`; `scored` are
    the scoring spans, each with the place of its first row.
    """

    rows: tuple[int, ...]
    sampled: tuple[int, ...]
    scored: tuple[tuple[Span, int], ...] = ()

    @classmethod
    def of(cls, plan: Plan) -> LogitRows:
        """Read them off a plan."""
        rows: list[int] = []
        sampled: list[int] = []
        scored: list[tuple[Span, int]] = []
        end = 0
        for span in plan.spans:
            first, end = end, end + span.count
            if span.scores:
                scored.append((span, len(rows)))
                rows.extend(range(first, end))
            elif span.samples:
                rows.append(end - 1)
            if span.samples:
                sampled.append(len(rows) - 1)
        return cls(tuple(rows), tuple(sampled), tuple(scored))


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model thought of consecutive tokens of a prompt; `first` is the position of the first, from 1."""

    first: int
    choices: tuple[Choice, ...]


def score(logits: NDArray[np.float32], start: int, prompt: Sequence[int], wanted: int | None) -> Scores:
    """Tell how likely a prompt's tokens were: logits fp32 [n, vocab] of positions [start, start + n).

    The row of position p tells of the token at p + 1; what lies behind the prompt is left out.
    """
    tokens = prompt[start + 1 : start + 1 + len(logits)]
    told = tuple(describe(row, token, wanted) for row, token in zip(logits, tokens, strict=False))
    return Scores(start + 1, told)
