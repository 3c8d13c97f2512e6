"""TokenVM: virtual memory for language-model inference.

Importing this package is cheap: torch is loaded when the first name that needs it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenvm.async_llm import AsyncLLM
    from tokenvm.bridges.autograd import PagedLinear, paged_activations
    from tokenvm.bridges.paged_memory import PagedMemory
    from tokenvm.bridges.patch import disable_paging, enable_paging, patch_model_attention
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
    from tokenvm.tensor_memory import MemoryHint
    from tokenvm.tensors import PagedTensor

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
    "MemoryHint",
    "ModelError",
    "PagedLinear",
    "PagedMemory",
    "PagedTensor",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StorageError",
    "StreamChunk",
    "StructuredOutputsParams",
    "TokenVMError",
    "disable_paging",
    "enable_paging",
    "paged_activations",
    "patch_model_attention",
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
    homes = {
        "AsyncLLM": "async_llm",
        "LLM": "llm",
        "MemoryConfig": "config",
        "MemoryHint": "tensor_memory",
        "PagedLinear": "bridges.autograd",
        "PagedMemory": "bridges.paged_memory",
        "PagedTensor": "tensors",
        "SamplingParams": "schedule.sampling_params",
        "StructuredOutputsParams": "schedule.structured_outputs",
        "disable_paging": "bridges.patch",
        "enable_paging": "bridges.patch",
        "paged_activations": "bridges.autograd",
        "patch_model_attention": "bridges.patch",
    }
    rest = "errors" if name.endswith(("Error", "TooSmall")) else "outputs"
    return f"tokenvm.{homes.get(name, rest)}"
