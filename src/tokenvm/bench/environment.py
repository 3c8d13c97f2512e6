"""What a bug report needs to know about this machine and this build."""

from __future__ import annotations

import os
import platform
from typing import Any

from tokenvm import __version__
from tokenvm.kernels.native import isa, isa_levels, threads
from tokenvm.machine import free_disk_bytes, free_memory_bytes, usable_cores
from tokenvm.models.fetch import default_cache_dir
from tokenvm.sizes import format_size


def describe() -> dict[str, Any]:
    """Return names and values, in the order to print them. Never names a prompt or a key."""
    import torch

    cache = default_cache_dir(os.environ)
    variables = sorted(name for name in os.environ if name.startswith("TOKENVM_"))
    return {
        "tokenvm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processor": processor(),
        "cores": usable_cores(),
        "kernels": f"{isa()} (of {', '.join(isa_levels())}), {threads()} threads",
        "free memory": format_size(free_memory_bytes()),
        "cache folder": str(cache),
        "free disk": format_size(free_disk_bytes(cache)),
        "variables": ", ".join(f"{name}={os.environ[name]}" for name in variables) or "none",
    }


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.machine()
