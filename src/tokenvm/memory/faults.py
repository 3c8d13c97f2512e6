"""What can go wrong with a copy, in the words that users see, and which tier is to blame."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from tokenvm.memory.backend import Kind, Status
from tokenvm.vocab import Tier


class Fault(enum.StrEnum):
    """One kind of failure below the device."""

    CHECKSUM = "checksum"  # the bytes are not those that were written
    SHORT_READ = "short_read"  # the file ends too early
    NO_SPACE = "no_space"  # ENOSPC, EDQUOT, EFBIG
    IO_ERROR = "io_error"  # EIO and what has no other name
    GONE = "gone"  # the file is closed, vanished or read-only
    SLOW = "slow"  # it took longer than `SLOW_S`


SLOW_S: Final = 10.0
"""A wait for one round of reads that takes longer is a fault: computing the pages again would have been sooner."""

FAULT_OF: Final[Mapping[int, Fault]] = {
    Status.SHORT: Fault.SHORT_READ,
    Status.DAMAGED: Fault.CHECKSUM,
    Status.NO_SPACE: Fault.NO_SPACE,
    Status.FAILED: Fault.IO_ERROR,
    Status.GONE: Fault.GONE,
}
"""The fault behind a status. A copy that was dropped is nobody's fault."""

PASSING: Final = (Status.SHORT, Status.DAMAGED, Status.FAILED)
"""What is tried again: it may have been a passing fault."""

TIER_OF: Final[Mapping[int, Tier]] = {
    Kind.READ: Tier.DISK,
    Kind.WRITE: Tier.DISK,
    Kind.COPY_IN: Tier.HOST,
    Kind.COPY_OUT: Tier.HOST,
}
"""The tier on the far side of a copy."""
