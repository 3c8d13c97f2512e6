"""What this machine has to spare, as the kernel and the control group tell it. Nothing here raises."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_UNLIMITED: Final = 1 << 60
"""Version 1 of control groups says "no limit" with a number above this."""


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Bytes of memory this process may still use: what is available, or what a control group leaves.

    `root` is where proc and sys are mounted. 0 when nothing can be read.
    """
    bounds = [bound for bound in (*_available(root), *_cgroup_rooms(root)) if bound >= 0]
    return min(bounds, default=0)


def free_disk_bytes(path: Path) -> int:
    """Bytes free to this user on the disk of `path`, which need not exist yet; 0 when unknown."""
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return 0


def usable_cores() -> int:
    """Cores this process may run on, at least 1."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def _available(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            yield from (kib * 1024 for kib in _numbers(rest.split()[:1]))


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Room left under each control group this process is in; reclaimable file pages count as room."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            for group in _upwards(mount, place):
                yield from _room(group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            for group in _upwards(mount / "memory", place):
                yield from _room(
                    group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                )


def _upwards(mount: Path, place: str) -> Iterator[Path]:
    """Yield the group's folder and those above it: any may limit, and a container sees only the top."""
    group = mount / place.strip().lstrip("/")
    yield group
    for parent in group.parents:
        if parent == mount or mount in parent.parents:
            yield parent


def _room(group: Path, limit_name: str, usage_name: str, reclaimable_name: str) -> Iterator[int]:
    limits, usages = _numbers(_lines(group / limit_name)), _numbers(_lines(group / usage_name))
    if not limits or not usages or limits[0] >= _UNLIMITED:
        return
    entries = (line.split() for line in _lines(group / "memory.stat"))
    reclaimable = _numbers(
        [entry[1] for entry in entries if len(entry) == 2 and entry[0] == reclaimable_name]
    )
    yield max(0, limits[0] - usages[0] + sum(reclaimable))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _numbers(texts: list[str]) -> list[int]:
    return [int(text) for text in map(str.strip, texts) if text.isdecimal()]
