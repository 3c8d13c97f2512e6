"""All requests between submission and end, as the front process sees them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tokenvm.engine.sampling.scoring import Scores
from tokenvm.engine_process.in_flight import InFlight
from tokenvm.engine_process.messages import Abort, Stepped, Stop
from tokenvm.errors import EngineDeadError
from tokenvm.schedule.plan import Event
from tokenvm.vocab import SeqId


class Requests:
    """Finds whom a message is for. What comes for a request that was removed is passed over."""

    def __init__(self) -> None:
        self._by_name: dict[str, InFlight] = {}  # the name on the wire, which is never used again
        self._unwanted: set[str] = set()  # names of those aborted before they were added
        self._by_seq: dict[SeqId, InFlight] = {}  # of sequences that have not ended

    def add(self, one: InFlight, now_s: float) -> bool:
        """A request is about to be submitted; return whether it was aborted before and has ended."""
        self._by_name[one.name] = one
        aborted = one.name in self._unwanted
        self._unwanted.discard(one.name)
        if aborted:
            one.abort(now_s)
        return aborted

    def abort(self, name: str) -> None:
        """Note that a request is not wanted, if its prompt is still being read."""
        if name not in self._by_name:
            self._unwanted.add(name)

    def drop(self, name: str) -> None:
        """Forget a request that could not be submitted."""
        self._by_name.pop(name, None)
        self._unwanted.discard(name)

    def remove(self, one: InFlight) -> bool:
        """Nobody waits for it any more; return whether somebody did."""
        for seq in one.seqs:
            self._by_seq.pop(seq, None)
        return self._by_name.pop(one.name, None) is not None

    def accept(self, name: str, seqs: Sequence[SeqId]) -> None:
        """The engine took a request."""
        if name in self._by_name:
            self._by_name[name].name_sequences(seqs)
            self._by_seq |= dict.fromkeys(seqs, self._by_name[name])

    def fail(self, name: str, error: Exception) -> None:
        """End a request by an error."""
        if name in self._by_name:
            self._by_name[name].fail(error)

    def fail_all(self, error: EngineDeadError) -> None:
        """End every request by an error of its own."""
        for one in self._by_name.values():
            one.fail(EngineDeadError(*error.args))

    def hear(self, step: Stepped, now_s: float) -> list[Abort | Stop]:
        """Take in what a step brought; return what the engine must be told."""
        for seq in step.begins.keys() & self._by_seq.keys():
            self._by_seq[seq].begin(seq, step.begins[seq], step.began_s)
        ended = {event.seq for event in step.ends}
        answers: list[Abort | Stop] = []
        for seq in step.scores.keys() & self._by_seq.keys():
            answers += self._score(self._by_seq[seq], step.scores[seq])
        events: list[Event] = [*step.tokens, *step.ends]
        for event in events:
            if event.request_id in self._by_name:
                answers += self._tell(self._by_name[event.request_id], event, step, now_s, ended)
        for seq in ended:
            self._by_seq.pop(seq, None)
        return answers

    def _score(self, one: InFlight, scores: Scores) -> list[Abort | Stop]:
        try:
            one.score(scores)
        except Exception as error:  # as below
            return _broken(one, error)
        return []

    def _tell(
        self, one: InFlight, event: Event, step: Stepped, now_s: float, ended: Collection[SeqId]
    ) -> list[Abort | Stop]:
        try:
            stops = one.hear(event, step.choices, now_s)
        except Exception as error:  # one request's text must not end the others
            return _broken(one, error)
        return [Stop(event.seq)] if stops and event.seq not in ended else []


def _broken(one: InFlight, error: Exception) -> list[Abort | Stop]:
    one.fail(error)
    return [Abort(one.name)]
