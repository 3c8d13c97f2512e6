"""Bytes for tensors in pages: allocated, brought to the device, read in windows, let go of."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, NewType, Self

import torch

from tokenvm.errors import RequestError, StorageError
from tokenvm.memory.cpu import bytes_at
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Answer, Tier, UnitId

VirtualAddress = NewType("VirtualAddress", int)
"""Names an allocation, wherever its pages lie."""

Fill = Callable[[int, torch.Tensor], None]

_CURRENT: ContextVar[TensorMemory | None] = ContextVar("tokenvm_memory", default=None)
_WRITTEN_AT_ONCE = 8  # pages whose copies down are started when the device gets crowded


class MemoryHint(enum.Enum):
    """What an allocation is for."""

    NONE = "none"
    KEEP = "keep"  # its pages leave the device after those of all others


@dataclass(frozen=True, slots=True)
class _Allocation:
    pages: tuple[UnitId, ...]
    nbytes: int
    hint: MemoryHint


class TensorMemory:
    """Pages of raw bytes over all tiers. Owns `vm`, whose pages have one part. One thread uses it."""

    def __init__(self, vm: MemoryManager) -> None:
        assert vm.layout.layers == 1, "TensorMemory: pages of one part are wanted"
        self.vm = vm
        self.page_bytes = vm.layout.part_bytes
        self._allocations: dict[VirtualAddress, _Allocation] = {}
        self._names = 0
        self._unwritten: OrderedDict[UnitId, None] = OrderedDict()  # sealed, not yet below
        self._closed = False
        self._token: Token[TensorMemory | None]

    @classmethod
    def current(cls) -> TensorMemory:
        """Return the memory of the innermost `with` block; RequestError outside of any."""
        found = _CURRENT.get()
        if found is None:
            raise RequestError("no memory is open here: write `with PagedMemory(config):`, or pass memory=")
        return found

    def __enter__(self) -> Self:
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _CURRENT.reset(self._token)
        self.close()

    def allocate(
        self, size: int, hint: MemoryHint = MemoryHint.NONE, fill: Fill | None = None
    ) -> VirtualAddress:
        """Take `size` bytes, zero-filled, at least one; `fill(index, page)` writes each page before it may leave.

        Raises RequestError for a size below 1, StorageError where there is no room in any tier.
        """
        self._refuse_closed()
        if size < 1:
            raise RequestError(f"allocate({size}) takes nothing: ask for at least one byte")
        pages: list[UnitId] = []
        try:
            for _ in range(-(-size // self.page_bytes)):
                pages.append(self._page())
                if fill is not None:
                    fill(len(pages) - 1, self._bytes(int(self.vm.addresses(pages[-1:])[0])))
                self._seal(pages[-1])
        except BaseException:
            self._release(pages)
            raise
        self._names += 1
        address = VirtualAddress(self._names)
        self._allocations[address] = _Allocation(tuple(pages), size, hint)
        return address

    def deallocate(self, address: VirtualAddress) -> None:
        """Give an allocation back. Raises RequestError for one that is not there, also the second time.

        Nothing is left to give back once the memory is closed.
        """
        if not self._closed:
            pages = self._at(address).pages
            del self._allocations[address]
            self._release(pages)

    def ensure_resident(self, address: VirtualAddress) -> tuple[int, ...]:
        """Bring all pages of an allocation to the device; where each lies, until the next call of this memory.

        Raises StorageError where they do not all fit, or one came back damaged.
        """
        pages = self._at(address).pages
        if len(pages) > self.vm.ledger.capacity(Tier.DEVICE):
            raise StorageError(
                f"{len(pages)} pages do not fit a device of {self.vm.ledger.capacity(Tier.DEVICE)}: raise vram_limit"
            )
        for needed in (
            [*self._kept(), pages],
            [pages],
        ):  # pages to keep leave only where there is no other way
            missing = sum(not self.vm.ledger.resident(unit, Tier.DEVICE) for unit in pages)
            if missing:
                self.vm.make_room(missing, needed)
                self.vm.promote([pages])
                self.vm.finish_transfers()
        if not all(self.vm.ledger.resident(unit, Tier.DEVICE) for unit in pages):
            raise StorageError("a page came back damaged: check the disk below nvme_path")
        self._touch(pages)
        return tuple(int(one) for one in self.vm.addresses(pages))

    def evict_pages(self, count: int) -> int:
        """Let up to `count` pages leave the device, in the policy's order; return how many did."""
        self._refuse_closed()
        ledger = self.vm.ledger
        wanted = min(ledger.capacity(Tier.DEVICE), ledger.free(Tier.DEVICE) + count)
        before = ledger.used(Tier.DEVICE)
        with suppress(StorageError):  # what can leave has left: there is no room below for more
            self.vm.make_room(wanted, self._kept())
        return before - ledger.used(Tier.DEVICE)

    def stats(self) -> dict[str, Any]:
        """Return used bytes of each tier and bytes moved, as plain values."""
        ledger = self.vm.ledger
        used = {tier.name.lower(): ledger.used(tier) * self.vm.layout.page_bytes for tier in Tier}
        high = {tier.name.lower(): self.vm.high_water_bytes(tier) for tier in Tier}
        return {"used_bytes": used, "high_water_bytes": high, "moved_bytes": self.vm.moved_bytes}

    @contextmanager
    def writing(self, address: VirtualAddress, index: int) -> Iterator[torch.Tensor]:
        """Lend page `index` of an allocation as bytes, uint8 [page_bytes], to be written to."""
        unit = self._at(address).pages[index]
        if self.vm.frozen.thaw([unit], [*self._kept(), [unit]]) is not Answer.HIT:
            raise StorageError("a page came back damaged: check the disk below nvme_path")
        try:
            yield self._bytes(int(self.vm.addresses([unit])[0]))
        finally:
            if not self._closed:
                self._seal(unit)

    def scan_pages(
        self, address: VirtualAddress, first: int, last: int
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield pages [first, last) of one allocation, as `scan` does."""
        yield from self._rows([(unit,) for unit in self._at(address).pages[first:last]])

    def scan(self, *addresses: VirtualAddress) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the pages of allocations of equal length side by side, uint8 [page_bytes] each, to be read at once.

        Pages on the device are read in place, others through the ring, a window at a time; no page changes its place.
        """
        yield from self._rows(list(zip(*(self._at(address).pages for address in addresses), strict=True)))

    def _rows(self, rows: Sequence[tuple[UnitId, ...]]) -> Iterator[tuple[torch.Tensor, ...]]:
        width = len(rows[0]) if rows else 1
        window = max(1, min(self.vm.ring.slots, self.vm.ledger.capacity(Tier.DEVICE) // 2) // width)
        for begin in range(0, len(rows), window):
            yield from self._window(rows[begin : begin + window])

    def close(self) -> None:
        """Stop all copies and give every byte back; idempotent."""
        if not self._closed:
            self._closed = True
            self.vm.close()

    def _window(self, rows: Sequence[tuple[UnitId, ...]]) -> Iterator[tuple[torch.Tensor, ...]]:
        ledger, ring = self.vm.ledger, self.vm.ring
        units = [unit for row in rows for unit in row]
        self.vm.settle()
        resident = [unit for unit in units if ledger.resident(unit, Tier.DEVICE)]
        away = [unit for unit in units if not ledger.resident(unit, Tier.DEVICE)]
        ledger.pin(resident)
        ticket = end = 0
        try:
            if away:
                ticket = ring.submit(self.vm.program(away))
                end = ticket + len(away)
            for row in rows:
                coming = sum(unit in away for unit in row)
                if coming and ring.wait(ticket + coming) is not Answer.HIT:
                    raise StorageError("a page came back damaged: check the disk below nvme_path")
                landed = iter(ring.addresses(ticket, ticket + coming).tolist())
                yield tuple(
                    self._bytes(next(landed) if unit in away else int(self.vm.addresses([unit])[0]))
                    for unit in row
                )
                self._refuse_closed()
                if coming:
                    ticket += coming
                    ring.release(ticket)
            self._touch(resident)
        finally:
            ledger.unpin(resident)
            if ticket != end and not self._closed:
                ring.cancel()

    def _page(self) -> UnitId:
        """Take an open page; when the device gets crowded, begin to write the oldest down."""
        ledger = self.vm.ledger
        if self._unwritten and ledger.free(Tier.DEVICE) * 4 <= ledger.capacity(Tier.DEVICE):
            count = min(len(self._unwritten), _WRITTEN_AT_ONCE)
            oldest = [self._unwritten.popitem(last=False)[0] for _ in range(count)]
            self.vm.write_behind([[unit for unit in oldest if unit in ledger]])
        return self.vm.new_page(self._kept())

    def _seal(self, unit: UnitId) -> None:
        self.vm.frozen.freeze([unit])
        self._unwritten[unit] = None

    def _release(self, pages: Sequence[UnitId]) -> None:
        for unit in pages:
            self._unwritten.pop(unit, None)
        self.vm.release(pages)

    def _touch(self, units: Sequence[UnitId]) -> None:
        for unit in units:
            if self.vm.ledger.resident(unit, Tier.DEVICE):
                self.vm.policy.touch(unit)

    def _kept(self) -> list[Sequence[UnitId]]:
        return [one.pages for one in self._allocations.values() if one.hint is MemoryHint.KEEP]

    def _at(self, address: VirtualAddress) -> _Allocation:
        self._refuse_closed()
        if address not in self._allocations:
            raise RequestError(
                f"there is no allocation {address}: it was given back, or is of another memory"
            )
        return self._allocations[address]

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RequestError(
                "this memory is closed, and its pages are gone: work inside the `with` block that opened it"
            )

    def _bytes(self, address: int) -> torch.Tensor:
        self._refuse_closed()
        return torch.from_numpy(bytes_at(address, self.page_bytes))
