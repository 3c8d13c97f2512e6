"""What a step computes: one token of each sequence that decodes, then as much of the prefills as there is room for."""

from __future__ import annotations

from tokenvm.schedule.admission import Admission
from tokenvm.schedule.limits import Limits
from tokenvm.schedule.plan import Span
from tokenvm.schedule.request import Sequence
from tokenvm.vocab import Answer, SeqId


class Packing:
    """The spans of one step. Bounded are its tokens, the rows whose logits are wanted, and the pages it makes.

    Prefills come by priority, then by arrival. A sequence begins with its first span. One of whose prompt more is
    found soon gets none in this step, nor do the others of its request. Where pages are to stay on the device, the
    prefills behind the first span fill only what room is left there.
    """

    def __init__(self, limits: Limits, admission: Admission) -> None:
        self.spans: list[Span] = []
        self.begins: list[SeqId] = []
        self._limits, self._admission = limits, admission
        self._running = admission.running
        self._tokens = limits.max_tokens_per_forward
        self._rows = limits.max_num_seqs
        self._free_slots = limits.device_slots - len(self._running) * limits.open_slots
        self._created = 0
        self._room = admission.room
        self._awaited: set[str] = set()
        self._pack_decodes()
        self._pack_prefills()

    def _pack_decodes(self) -> None:
        decoding, block = self._running.decoding, self._limits.block_tokens
        if len(decoding) <= min(self._tokens, self._free_slots + 1):
            computed = [one.computed for one in decoding.values()]
            self.spans = [Span(seq, start, 1, True) for seq, start in zip(decoding, computed, strict=True)]
            self._created = sum([not start % block for start in computed])
            self._tokens -= len(decoding)
        else:
            for one in decoding.values():
                if min(self._tokens, self._new_page_tokens(one.computed)) > 0:
                    self._add(Span(one.seq, one.computed, 1, True))
        self._rows -= len(self.spans)

    def _pack_prefills(self) -> None:
        for sequence in self._running.prefilling():
            if not self._tokens:
                return
            if sequence.begun:
                self._pack(sequence, sequence.computed, self._room)
            elif self._may_begin(sequence):
                self._begin(sequence)

    def _may_begin(self, sequence: Sequence) -> bool:
        """Whether a sequence that needs a new page gets one, and nothing more of its prompt is found soon."""
        if self._new_page_tokens(sequence.computed) <= 0 or sequence.request.request_id in self._awaited:
            return False
        if not sequence.computed and self._admission.look_up(sequence) is Answer.IN_FLIGHT:
            self._awaited.add(sequence.request.request_id)
            return False
        return True

    def _begin(self, sequence: Sequence) -> None:
        filled = sequence.computed > 0
        start = sequence.computed or sequence.found * self._limits.block_tokens
        need = self._admission.new_slots(sequence)
        room = None if self._room is None else self._room - need
        if not self._pack(sequence, start, room):
            return
        if self._room is not None:
            self._room -= need
        if not filled:
            self.begins.append(sequence.seq)
        self._admission.begin(sequence)

    def _pack(self, sequence: Sequence, start: int, room: int | None) -> bool:
        """Give a sequence as many tokens from `start` on as there is room for; say whether it got any."""
        pending = len(sequence.tokens) - start
        count = min(pending, self._tokens, self._new_page_tokens(start))
        scores = sequence.scored and start < sequence.prompt_tokens
        if scores:
            count = min(count, self._rows, sequence.prompt_tokens - start)
        if room is not None and not sequence.oversize and self.spans:
            count = min(count, -start % self._limits.block_tokens + max(0, room) * self._limits.block_tokens)
        count = self._whole_pages(start, count)
        samples = count == pending
        if count <= 0 or (samples and not self._rows):
            return False
        self._rows -= count if scores else samples
        self._add(Span(sequence.seq, start, count, samples, scores))
        if self._room is not None and not sequence.oversize:
            self._room -= self._limits.pages(start + count) - self._limits.pages(start)
        return True

    def _add(self, span: Span) -> None:
        self.spans.append(span)
        self._tokens -= span.count
        self._created += self._limits.pages(span.end) - self._limits.pages(span.start)

    def _new_page_tokens(self, start: int) -> int:
        """Return how many tokens may run from `start` on before the pages they fill need every slot.

        Slots hold the open pages of the others, the sequence's own, and what the step makes: pages are written down
        while a step fills them, so that the next one may take all slots again.
        """
        block = self._limits.block_tokens
        open_tokens = -start % block
        share = max(1, self._free_slots + (open_tokens == 0))
        return open_tokens + max(0, share - self._created) * block

    def _whole_pages(self, start: int, count: int) -> int:
        """Cut a span that fills an open page and goes on, so that it ends with a page: one open page a sequence.

        Only where an open page takes more than its own slot.
        """
        block, end = self._limits.block_tokens, start + count
        crosses = start % block and end // block > start // block
        return count - end % block if crosses and self._limits.beside else count
