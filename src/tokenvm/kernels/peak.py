"""What the processor does at best, without a model: multiply-adds without loads, reads without use."""

from __future__ import annotations

from tokenvm.kernels.native import native


def peak_name() -> str:
    """Which loop `run_peak` runs: tiles of bfloat16 where there are some, else multiply-adds of float32."""
    return str(native().peak_name())


def run_peak(rounds: int) -> int:
    """Run the loop `rounds` times on every thread of the team; return how many operations that were."""
    return int(native().run_peak(rounds))


def read_all(address: int, nbytes: int) -> int:
    """Read every cache line of a range with the whole team; a value that depends on all of them.

    `nbytes` is a multiple of 512.
    """
    return int(native().read_all(address, nbytes))
