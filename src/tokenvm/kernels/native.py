"""The native extension: found once, with the instruction set that TOKENVM_ISA asks for."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

from tokenvm.errors import BuildError

NUMERICS_ID = "k32-2"
"""Names the arithmetic of all kernels: every instruction set computes these bits."""


@functools.cache
def native() -> Any:
    """The extension module, loaded at the first use.

    Raises BuildError if it was not built, or if TOKENVM_ISA names an instruction set this machine does not
    have.
    """
    try:
        extension = importlib.import_module("tokenvm._native")
    except ImportError as error:
        raise BuildError(
            f"the native kernels do not load ({error}): pip install --force-reinstall tokenvm"
        ) from error
    wanted = os.environ.get("TOKENVM_ISA", "")
    if wanted:
        extension.set_isa(wanted)
    return extension


def isa() -> str:
    """The instruction set in use: "amx", "avx512", "avx2" or "portable"."""
    return str(native().isa())


def isa_levels() -> list[str]:
    """The instruction sets this machine can run, best first."""
    return list(native().isa_levels())


def set_isa(name: str) -> None:
    """Use another instruction set from now on. Raises BuildError if this machine does not have it."""
    native().set_isa(name)


def threads() -> int:
    """How many threads share a kernel call, the caller included. Starts as the number of usable CPUs."""
    return int(native().threads())


def set_threads(count: int) -> None:
    """Share kernel calls among `count` threads (at least 1, else ValueError). No result depends on it."""
    native().set_threads(count)
