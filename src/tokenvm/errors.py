"""Every error TokenVM raises on purpose. The message always says what to type next.

TokenVMError
├── ConfigError          a setting is unknown, malformed or contradicts another
│   └── LimitTooSmall    a memory limit is below what the work needs; names the minimum
├── ModelError           a model cannot be found, read or understood
│   └── UnsupportedModel it can be read, but asks for what the native decoder has not
├── RequestError         a prompt or a sampling parameter is not acceptable; the engine goes on
├── StorageError         a tier cannot be opened or has no room
├── EngineDeadError      the engine's process has ended; its requests are lost
└── BuildError           the native extension is missing or does not fit this machine
"""

from __future__ import annotations


class TokenVMError(Exception):
    """Base of all errors that are about the world, not about our bugs."""


class ConfigError(TokenVMError):
    """A setting is unknown, malformed or contradicts another."""


class LimitTooSmall(ConfigError):  # noqa: N818 - reads as a sentence: raise LimitTooSmall(...)
    """A memory limit is below the smallest legal one.

    `minimum_bytes` is the smallest value that would have worked.
    """

    def __init__(self, message: str, minimum_bytes: int) -> None:
        super().__init__(message)
        self.minimum_bytes = minimum_bytes


class ModelError(TokenVMError):
    """A model cannot be found, read or understood."""


class UnsupportedModel(ModelError):  # noqa: N818 - reads as a sentence
    """A model is whole, but of an architecture, or with a setting, that the native decoder does not have."""


class RequestError(TokenVMError):
    """A prompt or a sampling parameter is not acceptable; nothing was lost and the engine goes on."""


class StorageError(TokenVMError):
    """A tier cannot be opened, written or has no room left."""


class EngineDeadError(TokenVMError):
    """The process of an AsyncLLM's engine has ended, and with it every request; make another AsyncLLM."""


class BuildError(TokenVMError):
    """The native extension is missing or does not fit this machine."""
