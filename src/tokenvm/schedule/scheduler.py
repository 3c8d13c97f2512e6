"""Who runs, how many tokens of each, and what came of it: continuous batching that looks ahead."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping

from tokenvm.errors import RequestError
from tokenvm.schedule.admission import Admission
from tokenvm.schedule.limits import Limits
from tokenvm.schedule.packing import Packing
from tokenvm.schedule.plan import Event, FinishedEvent, Plan, TokenEvent
from tokenvm.schedule.prefixes import NoPrefixes, Prefixes
from tokenvm.schedule.refusals import refuse_impossible, refuse_oversized
from tokenvm.schedule.request import Request, Sequence, Status
from tokenvm.vocab import SeqId

__all__ = ["Limits", "Scheduler"]


class Scheduler:
    """Waiting, running and paused sequences. Pure: time is given, ids only.

    First come, first served among requests of equal priority: nobody is admitted or comes back before somebody of the
    same priority who came earlier. A lower number goes before; endless arrivals of lower numbers keep a higher one
    waiting. A step costs nothing for those that wait.
    """

    def __init__(self, limits: Limits, prefixes: Prefixes | None = None) -> None:
        self.limits = limits
        self._whole_limits = limits
        self._prefixes = prefixes or NoPrefixes()
        self._admission = Admission(limits, self._prefixes)
        self._running = self._admission.running
        self._sequences: dict[SeqId, Sequence] = {}
        self._live: dict[str, dict[SeqId, Sequence]] = {}
        self._next = 0
        self._promises: list[int] = []  # the most pages of each sequence that has not ended, ascending

    @property
    def has_work(self) -> bool:
        """Whether any sequence has not ended.

        The next plan has a span then, unless every running sequence waits for pages that are IN_FLIGHT to the device.
        """
        return bool(self._sequences)

    @property
    def running(self) -> tuple[SeqId, ...]:
        """Running sequences, in the order of their admission."""
        return tuple(self._running.everyone)

    @property
    def counts(self) -> dict[str, int]:
        """How many sequences run, wait for their first turn or have been paused."""
        paused = self._admission.paused
        running = len(self._running)
        return {"running": running, "waiting": len(self._sequences) - running - paused, "paused": paused}

    @property
    def most_pages(self) -> int:
        """The pages that all who have not ended may come to own at once."""
        return min(sum(self._promises[-self.limits.max_num_seqs :]), self._whole_limits.held_pages)

    def sequence(self, seq: SeqId) -> Sequence:
        """Return a sequence that has not ended."""
        return self._sequences[seq]

    def __contains__(self, seq: SeqId) -> bool:
        """Whether a sequence has not ended."""
        return seq in self._sequences

    def add(self, request: Request) -> tuple[SeqId, ...]:
        """Queue a request; return its sequences, one for each of the `n` it asks for, in the order of their index.

        The request's id is free again once all of them have ended.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, can never fit, nothing is asked for, or
                the request's id is that of one that has not finished. Nothing is kept then.
        """
        if request.request_id in self._live:
            raise RequestError(
                f"a request {request.request_id!r} has not finished: give each an id of its own"
            )
        refuse_impossible(request, self._whole_limits)
        room = self.limits.max_model_len - len(request.prompt_token_ids)
        longest = request.params.most_tokens(room)
        pages = self.limits.pages(len(request.prompt_token_ids) + longest - 1)  # the last token needs no KV
        refuse_oversized(pages, self._whole_limits)  # a tier that is left alone now may be used again by then
        made = {}
        for index in range(request.params.n):
            seq = SeqId(self._next)
            self._next += 1
            made[seq] = Sequence(seq, request, longest, index, pages)
            self._admission.queue.push(made[seq])
            bisect.insort(self._promises, pages)
        self._sequences |= made
        self._live[request.request_id] = dict(made)
        return tuple(made)

    def abort(self, request_id: str) -> list[Event]:
        """End every sequence of a request, waiting, running or paused; its pages are the caller's to release."""
        return [self._finish(sequence, "abort") for sequence in list(self._live.get(request_id, {}).values())]

    def stop(self, seq: SeqId) -> FinishedEvent:
        """End one sequence because its text said so."""
        return self._finish(self._sequences[seq], "stop")

    def resize(self, lower_pages: int) -> list[SeqId]:
        """Let the tiers below the device hold so many pages from now on; return who was set back because of it.

        Such a sequence owns no page any more: the caller releases them, and announces it again. It keeps its tokens.
        """
        lower_pages = min(lower_pages, self._whole_limits.lower_pages)
        if lower_pages == self.limits.lower_pages:
            return []
        self.limits = self.limits.holding(lower_pages)
        self._admission.resize(self.limits)
        return [self._set_back(sequence) for sequence in self._admission.over_promised()]

    def set_back_last(self) -> list[SeqId]:
        """Set the sequence back that comes last of those that own pages, unless it is the only one; see `resize`."""
        owners = self._admission.owners()
        return [self._set_back(owners[-1])] if len(owners) > 1 else []

    def restart(self) -> list[SeqId]:
        """Set everybody back, whatever state a call that was interrupted left behind; see `resize`."""
        self._admission = Admission(self.limits, self._prefixes)
        self._running = self._admission.running
        for sequence in self._sequences.values():
            sequence.set_back()
            self._admission.queue.push(sequence)
        return list(self._sequences)

    def fits(self, request_id: str) -> bool:
        """Whether each sequence of a request could run alone, as the tiers are now."""
        most = self.limits.most_pages(sequences=1)
        return all(one.most_pages <= most for one in self._live[request_id].values())

    def _set_back(self, sequence: Sequence) -> SeqId:
        self._admission.set_back(sequence)
        return sequence.seq

    def plan(self) -> Plan:
        """Decide who runs, then give each running sequence its tokens: decodes first, then prefills.

        A sequence that was filled from elsewhere, so that some of its tokens are computed before it first runs, is not
        among those that begin.
        """
        paused, resumed = self._admission.turn()
        packing = Packing(self.limits, self._admission)
        if not packing.spans and (back := self._admission.bring_back()):
            resumed += back
            packing = Packing(self.limits, self._admission)
        pauses, resumes = [one.seq for one in paused], [one.seq for one in resumed]
        return Plan(
            tuple(packing.spans),
            spills=self._running.promised_slots > self.limits.device_slots,
            begins=tuple(packing.begins),
            pauses=tuple(seq for seq in pauses if seq not in resumes),
            resumes=tuple(seq for seq in resumes if seq not in pauses),
        )

    def commit(self, plan: Plan, tokens: Mapping[SeqId, int], lost: Mapping[SeqId, int]) -> list[Event]:
        """Advance by what was computed; sequences in `lost` fall back to that many tokens and take no new one.

        A sequence that was aborted since the plan was made is passed over.
        """
        events: list[Event] = []
        for seq in lost.keys() & self._sequences.keys():
            sequence = self._sequences[seq]
            if lost[seq] < sequence.computed:
                sequence.computed = lost[seq]
                self._admission.cut(sequence)
        running = self._running.everyone
        for span in plan.spans:
            if span.seq in lost or span.seq not in running:
                continue
            sequence = running[span.seq]
            sequence.computed = span.end
            if span.samples:
                events += self._take(sequence, tokens[span.seq])
            else:
                self._running.file(sequence)
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
        else:
            self._running.file(sequence)

    def _finish(self, sequence: Sequence, reason: str, token: int | None = None) -> FinishedEvent:
        name = sequence.request.request_id
        self._admission.end(sequence, answered=reason != "abort")
        sequence.status = Status.FINISHED
        del self._sequences[sequence.seq], self._live[name][sequence.seq]
        if not self._live[name]:
            del self._live[name]
        del self._promises[bisect.bisect_left(self._promises, sequence.most_pages)]
        return FinishedEvent(name, sequence.seq, reason, token)
