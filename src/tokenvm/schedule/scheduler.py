"""First come, first served: who runs, how many tokens of each, who is admitted."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral

from tokenvm.errors import RequestError
from tokenvm.schedule.plan import Event, FinishedEvent, Plan, Span, TokenEvent
from tokenvm.schedule.request import Request, Sequence, Status
from tokenvm.vocab import SeqId


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step and the memory can hold.

    `device_slots` bounds the pages that sequences may fill at once, `held_pages` those they may own over all tiers.
    An open page takes `open_slots` device slots. Of `held_pages`, the tiers below the device hold `lower_pages`.
    """

    max_num_seqs: int
    max_tokens_per_forward: int
    max_model_len: int
    block_tokens: int
    device_slots: int
    held_pages: int
    vocab_size: int
    eos_token_ids: frozenset[int] = frozenset()
    open_slots: int = 1
    lower_pages: int = 0

    def __post_init__(self) -> None:
        assert self.device_slots > self.open_slots >= 1, "the slots of an open page and one spare"
        assert min(self.max_num_seqs, self.max_tokens_per_forward, self.block_tokens, self.held_pages) >= 1

    def most_pages(self, sequences: int) -> int:
        """Return how many pages so many sequences may own: all below the device, or beside what open ones take."""
        return max(self.held_pages - sequences * (self.open_slots - 1), self.lower_pages)


class Scheduler:
    """Waiting and running sequences. Pure: time is given, ids only."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: dict[SeqId, Sequence] = {}
        self._running: dict[SeqId, Sequence] = {}
        self._live: set[str] = set()
        self._next = 0
        self._promises: list[int] = []  # the most pages of each waiting or running sequence, ascending

    @property
    def has_work(self) -> bool:
        """Whether any sequence is waiting or running."""
        return bool(self._waiting or self._running)

    @property
    def running(self) -> tuple[SeqId, ...]:
        """Running sequences, first come first."""
        return tuple(self._running)

    @property
    def most_pages(self) -> int:
        """The pages that all who wait or run may come to own at once."""
        return min(sum(self._promises[-self.limits.max_num_seqs :]), self.limits.held_pages)

    def sequence(self, seq: SeqId) -> Sequence:
        """Return a sequence that is waiting or running."""
        return self._running.get(seq) or self._waiting[seq]

    def add(self, request: Request) -> SeqId:
        """Queue a request.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, can never fit, or the request's id is
                that of one that has not finished.
        """
        if request.request_id in self._live:
            raise RequestError(
                f"a request {request.request_id!r} has not finished: give each an id of its own"
            )
        self._refuse_impossible(request)
        room = self.limits.max_model_len - len(request.prompt_token_ids)
        seq = SeqId(self._next)
        self._next += 1
        sequence = Sequence(seq, request, request.params.most_tokens(room))
        self._refuse_oversized(sequence)
        self._waiting[seq] = sequence
        self._live.add(request.request_id)
        bisect.insort(self._promises, self._pages(sequence))
        return seq

    def abort(self, request_id: str) -> list[Event]:
        """End every sequence of a request; its pages are the caller's to release."""
        ended = [
            s
            for s in (*self._running.values(), *self._waiting.values())
            if s.request.request_id == request_id
        ]
        return [self._finish(sequence, "abort") for sequence in ended]

    def stop(self, seq: SeqId) -> FinishedEvent:
        """End one sequence because its text said so."""
        return self._finish(self._running[seq], "stop")

    def plan(self) -> Plan:
        """Admit whom there is room for, then give each running sequence its tokens: decodes first, then prefills."""
        self._admit()
        budget = self.limits.max_tokens_per_forward
        spans: list[Span] = []
        for sequence in sorted(self._running.values(), key=lambda s: not s.decoding):
            count = min(sequence.pending, budget, self._chunk_tokens(sequence, spans))
            count = self._whole_pages(sequence.computed, count)
            if count > 0:
                spans.append(Span(sequence.seq, sequence.computed, count, count == sequence.pending))
                budget -= count
        promised = sum(self._slots(sequence) for sequence in self._running.values())
        return Plan(tuple(spans), spills=promised > self.limits.device_slots)

    def commit(self, plan: Plan, tokens: Mapping[SeqId, int], lost: Mapping[SeqId, int]) -> list[Event]:
        """Advance by what was computed; sequences in `lost` fall back to that many tokens and take no new one.

        A sequence that was aborted since the plan was made is passed over.
        """
        events: list[Event] = []
        for seq in lost.keys() & self._running.keys():
            self._running[seq].computed = min(self._running[seq].computed, lost[seq])
        for span in plan.spans:
            if span.seq in lost or span.seq not in self._running:
                continue
            sequence = self._running[span.seq]
            sequence.computed = span.end
            if span.samples:
                events += self._take(sequence, tokens[span.seq])
        return events

    def _take(self, sequence: Sequence, token: int) -> Iterable[Event]:
        sequence.tokens.append(token)
        params, name = sequence.request.params, sequence.request.request_id
        yield TokenEvent(name, sequence.seq, token, sequence.new_tokens - 1)
        ends = token in self.limits.eos_token_ids and not params.ignore_eos
        if ends or token in (params.stop_token_ids or ()):
            yield self._finish(sequence, "stop", token)
        elif sequence.new_tokens >= sequence.max_new_tokens:
            yield self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: str, token: int | None = None) -> FinishedEvent:
        self._running.pop(sequence.seq, None)
        self._waiting.pop(sequence.seq, None)
        self._live.discard(sequence.request.request_id)
        sequence.status = Status.FINISHED
        del self._promises[bisect.bisect_left(self._promises, self._pages(sequence))]
        return FinishedEvent(sequence.request.request_id, sequence.seq, reason, token)

    def _admit(self) -> None:
        """Move sequences from waiting to running, in order, while slots for open pages and pages to own are left."""
        held = sum(self._pages(sequence) for sequence in self._running.values())
        for seq, sequence in list(self._waiting.items()):
            held += self._pages(sequence)
            crowd = len(self._running) + 1
            if crowd > self._crowd_limit or held > self.limits.most_pages(crowd):
                return
            del self._waiting[seq]
            sequence.status = Status.RUNNING
            self._running[seq] = sequence

    @property
    def _crowd_limit(self) -> int:
        """Each running sequence has an open page on the device, and one slot is spare."""
        return min(self.limits.max_num_seqs, (self.limits.device_slots - 1) // self.limits.open_slots)

    def _pages(self, sequence: Sequence) -> int:
        """Return how many pages a sequence owns at most: the last token produced needs no KV."""
        tokens = sequence.prompt_tokens + sequence.max_new_tokens - 1
        return -(-tokens // self.limits.block_tokens)

    def _slots(self, sequence: Sequence) -> int:
        """Return how many slots a sequence takes at most: its pages, and what an open page takes beside its own."""
        return self._pages(sequence) + self.limits.open_slots - 1

    def _chunk_tokens(self, sequence: Sequence, spans: list[Span]) -> int:
        """Return how many tokens may run before the pages they fill need every slot.

        Slots hold the open pages of the others, the sequence's own, and what the step makes: pages are written down
        while a step fills them, so that the next one may take all slots again.
        """
        block = self.limits.block_tokens
        open_tokens = -sequence.computed % block
        share = self.limits.device_slots - len(self._running) * self.limits.open_slots + (open_tokens == 0)
        share = max(1, share)
        created = sum(-(-span.end // block) - -(-span.start // block) for span in spans)
        return open_tokens + max(0, share - created) * block

    def _whole_pages(self, start: int, count: int) -> int:
        """Cut a span that fills an open page and goes on, so that it ends with a page: one open page a sequence.

        Only where an open page takes more than its own slot.
        """
        block, end = self.limits.block_tokens, start + count
        crosses = start % block and end // block > start // block
        return count - end % block if crosses and self.limits.open_slots > 1 else count

    def _refuse_impossible(self, request: Request) -> None:
        ids, limits = request.prompt_token_ids, self.limits
        if not ids:
            raise RequestError("the prompt is empty: give at least one token")
        for token in ids:
            if (
                not isinstance(token, Integral)
                or isinstance(token, bool)
                or not 0 <= token < limits.vocab_size
            ):
                raise RequestError(
                    f"token id {token!r} is not in the vocabulary: ids are whole numbers from 0 to "
                    f"{limits.vocab_size - 1}"
                )
        request.params.refuse_unknown(limits.vocab_size)
        if len(ids) >= limits.max_model_len:
            raise RequestError(
                f"the prompt has {len(ids)} tokens and the model allows {limits.max_model_len} with at least one "
                f"to answer: shorten it to {limits.max_model_len - 1} tokens"
            )

    def _refuse_oversized(self, sequence: Sequence) -> None:
        needed = self._pages(sequence)
        most = self.limits.most_pages(sequences=1)
        if needed > most:
            raise RequestError(
                f"this request needs {needed} pages of {self.limits.block_tokens} tokens and all tiers together hold "
                f"{most}: raise nvme_limit, host_memory or kv_limit, or lower max_tokens"
            )
