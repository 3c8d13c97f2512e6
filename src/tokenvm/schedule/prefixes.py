"""What the scheduler asks of those who keep pages: how much of a prompt has its KV already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tokenvm.vocab import Answer, SeqId, UnitId


@dataclass(frozen=True, slots=True)
class Match:
    """The leading whole pages of a prompt whose KV exists, in position order; never its last token.

    HIT: the sequence may begin behind them now. IN_FLIGHT: more will be there soon, because a running sequence computes
    it or a copy is on its way to the device: ask again in the next step.
    """

    answer: Answer
    units: tuple[UnitId, ...] = ()


class Prefixes(Protocol):
    """Who keeps pages."""

    def match(self, seq: SeqId) -> Match:
        """Say what is found for a sequence that was announced and has not begun. Changes no page's place."""
        ...


class NoPrefixes:
    """Nothing is ever found: every prompt is computed from its start."""

    def match(self, seq: SeqId) -> Match:
        """Find nothing."""
        return Match(Answer.HIT)
