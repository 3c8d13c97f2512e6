"""From limits in bytes to slots. Pure arithmetic: what fits, and what to type when it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenvm.config import MemoryConfig
from tokenvm.errors import LimitTooSmall
from tokenvm.memory.layout import HUGE_BYTES
from tokenvm.sizes import format_size

MIN_RING_PARTS = 4
MAX_RING_BYTES = 8 << 20
RING_SHARE = 2  # at most half of a KV limit is staging ring, in whole huge pages where it has some


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model asks for, in bytes: one page over all layers, one part, its weights, its workspace.

    `open_slots`: the device slots that an open page takes. `block_tokens`: the tokens of a page.
    """

    page_bytes: int
    part_bytes: int
    weight_bytes: int
    workspace_bytes: int
    wanted_pages: int
    open_slots: int = 1
    block_tokens: int = 16


@dataclass(frozen=True, slots=True)
class Budget:
    """Slots of each tier. Device pages and ring together stay within `kv_bytes`."""

    device_slots: int
    ring_slots: int
    host_slots: int
    disk_bytes: int
    kv_bytes: int

    @property
    def spills(self) -> bool:
        """Whether there is any tier below the device."""
        return self.host_slots > 0 or self.disk_bytes > 0


def minimum_kv_bytes(needs: Needs, sequences: int = 1, *, spills: bool = True) -> int:
    """Return the smallest legal `kv_limit`: an open page of each running sequence, a spare one, and the ring."""
    ring = MIN_RING_PARTS * needs.part_bytes if spills else 0
    return needs.page_bytes * (needs.open_slots * sequences + 1) + ring


def plan_budget(config: MemoryConfig, needs: Needs, free_bytes: int, free_disk_bytes: int) -> Budget:
    """Turn the limits of `config` into slots.

    Whatever the user left open is at most half of what is free, and never more than `needs.wanted_pages`.

    Raises:
        LimitTooSmall: a limit is below the minimum; the message names it.
    """
    host_slots = _lower_bytes("host_memory", config.host_memory, 0, needs) // needs.page_bytes
    disk_bytes = _lower_bytes("nvme_limit", config.nvme_limit, free_disk_bytes // 2, needs)
    spills = host_slots > 0 or disk_bytes > 0
    kv_bytes = _kv_bytes(config, needs, free_bytes, spills=spills)
    ring_slots = _ring_slots(kv_bytes, needs) if spills else 0
    device_slots = (kv_bytes - ring_slots * needs.part_bytes) // needs.page_bytes
    device_slots = min(device_slots, max(needs.wanted_pages, needs.open_slots + 1))
    if config.kv_cache_num_tokens != "auto":
        device_slots = min(device_slots, _pages(config.kv_cache_num_tokens, needs))
    return Budget(device_slots, ring_slots, host_slots, disk_bytes, kv_bytes)


def _lower_bytes(name: str, given: int | Literal["auto"], automatic: int, needs: Needs) -> int:
    """Return the bytes of a lower tier, 0 for off: where the user named a limit it has to hold a page."""
    if given == "auto":
        return automatic if automatic >= needs.page_bytes else 0
    if given:
        _require(name, given, needs.page_bytes, "one page; 0 switches the tier off")
    return given


def _ring_slots(kv_bytes: int, needs: Needs) -> int:
    share = min(MAX_RING_BYTES, kv_bytes // RING_SHARE)
    wanted = (share - share % HUGE_BYTES if share > HUGE_BYTES else share) // needs.part_bytes
    most = (kv_bytes - (needs.open_slots + 1) * needs.page_bytes) // needs.part_bytes
    return max(MIN_RING_PARTS, min(wanted, most))


def _kv_bytes(config: MemoryConfig, needs: Needs, free_bytes: int, *, spills: bool) -> int:
    fixed = needs.weight_bytes + needs.workspace_bytes
    minimum = minimum_kv_bytes(needs, spills=spills)
    pages = f"{needs.open_slots + 1} pages"
    ceiling = _vram_share(config, fixed, minimum, pages)
    if config.kv_cache_num_tokens != "auto":
        wanted = _token_bytes(config.kv_cache_num_tokens, needs, spills=spills)
        return min(wanted, ceiling) if ceiling else wanted
    if config.kv_limit != "auto":
        _require("kv_limit", config.kv_limit, minimum, f"{pages} and the staging ring")
        return min(config.kv_limit, ceiling) if ceiling else config.kv_limit
    roomy = needs.wanted_pages * needs.page_bytes + MAX_RING_BYTES
    return min(ceiling, roomy) if ceiling else max(minimum, min(free_bytes // 2 - fixed, roomy))


def _token_bytes(tokens: int, needs: Needs, *, spills: bool) -> int:
    """Return bytes that leave the pages of so many tokens beside the ring."""
    fewest = needs.open_slots + 1
    if _pages(tokens, needs) < fewest:
        raise LimitTooSmall(
            f"kv_cache_num_tokens is {tokens}, but this model needs at least {fewest} pages of {needs.block_tokens} "
            f"tokens: type kv_cache_num_tokens={fewest * needs.block_tokens} or more",
            minimum_kv_bytes(needs, spills=spills),
        )
    page_bytes = _pages(tokens, needs) * needs.page_bytes
    if not spills:
        return page_bytes
    roomy = page_bytes * RING_SHARE // (RING_SHARE - 1) + needs.part_bytes
    return page_bytes + _ring_slots(roomy, needs) * needs.part_bytes


def _pages(tokens: int, needs: Needs) -> int:
    return -(-tokens // needs.block_tokens)


def _vram_share(config: MemoryConfig, fixed: int, minimum: int, pages: str) -> int:
    """Return what `vram_limit` leaves for KV, 0 when it is not set."""
    if config.vram_limit == "auto":
        return 0
    _require(
        "vram_limit",
        config.vram_limit,
        fixed + minimum,
        f"weights, workspace, {pages} and the ring",
    )
    return config.vram_limit - fixed


def _require(name: str, given: int, minimum: int, why: str) -> None:
    if given < minimum:
        raise LimitTooSmall(
            f"{name} is {format_size(given)}, but this model needs at least {minimum} bytes ({why}): "
            f'type {name}="{-(-minimum // 1_000_000)}MB" or more',
            minimum,
        )
