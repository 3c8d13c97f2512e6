"""TokenVM: virtual memory for language-model inference.

Importing this package is cheap: torch is loaded when the first name that needs it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenvm.async_llm import AsyncLLM
    from tokenvm.config import MemoryConfig
    from tokenvm.errors import (
        BuildError,
        ConfigError,
        EngineDeadError,
        LimitTooSmall,
        ModelError,
        RequestError,
        StorageError,
        TokenVMError,
    )
    from tokenvm.llm import LLM
    from tokenvm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamChunk
    from tokenvm.schedule.sampling_params import SamplingParams
    from tokenvm.schedule.structured_outputs import StructuredOutputsParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "BuildError",
    "CompletionOutput",
    "ConfigError",
    "EngineDeadError",
    "LimitTooSmall",
    "Logprob",
    "MemoryConfig",
    "ModelError",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StorageError",
    "StreamChunk",
    "StructuredOutputsParams",
    "TokenVMError",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'tokenvm' has no attribute {name!r}")
    return getattr(importlib.import_module(_home(name)), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)


def _home(name: str) -> str:
    """Return the module that defines a public name."""
    if name == "LLM":
        return "tokenvm.llm"
    if name == "AsyncLLM":
        return "tokenvm.async_llm"
    if name == "MemoryConfig":
        return "tokenvm.config"
    if name == "SamplingParams":
        return "tokenvm.schedule.sampling_params"
    if name == "StructuredOutputsParams":
        return "tokenvm.schedule.structured_outputs"
    return "tokenvm.errors" if name.endswith(("Error", "TooSmall")) else "tokenvm.outputs"
