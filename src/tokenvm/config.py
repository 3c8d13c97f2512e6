"""Settings of the memory: what each means, its names in environment and file, and which value wins."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from tokenvm.config_values import check_keys, listed, megabytes, whole_number, yes_or_no
from tokenvm.errors import ConfigError
from tokenvm.sizes import format_size, parse_duration, parse_size

__all__ = [
    "MemoryConfig",
    "Resolved",
    "config_path",
    "format_size",
    "parse_size",
    "read_config_file",
    "resolve",
]

Auto = Literal["auto"]

_SIZES: Final = ("vram_limit", "kv_limit", "host_memory", "nvme_limit", "page_size")
_FROM_ONE: Final = ("kv_cache_num_tokens", "prefetch_depth", "prefetch_ahead")
_COUNTS: Final[Mapping[str, int]] = {"block_tokens": 16, **dict.fromkeys(_FROM_ONE, 1)}
"""Field → the smallest value."""

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "policy": ("auto", "lru", "2q", "arc", "s3fifo", "predictor"),
    "prefetch_strategy": ("none", "sequential"),
    "compression": ("none", "bitpack", "lz4", "zstd"),
    "kv_cache_dtype": ("auto", "int8", "fp8"),
    "nvme_flush": ("background", "none"),
}
_MB_VARIABLES: Final[Mapping[str, str]] = {
    "vram_limit": "TOKENVM_GPU_MB",
    "kv_limit": "TOKENVM_KV_MB",
    "host_memory": "TOKENVM_HOST_MB",
    "nvme_limit": "TOKENVM_NVME_MB",
}
_OTHER_FIELDS: Final = (
    "nvme_path",
    "nvme_ttl",
    "nvme_flush",
    "nvme_read_only",
    "block_tokens",
    "policy",
    "prefetch_strategy",
    "prefetch_depth",
    "prefetch_ahead",
    "overlap_streams",
    "compression",
    "kv_cache_dtype",
)
VARIABLES: Final[Mapping[str, str]] = {
    **_MB_VARIABLES,
    "kv_cache_num_tokens": "TOKENVM_KV_TOKENS",
    **{name: f"TOKENVM_{name.upper()}" for name in _OTHER_FIELDS},
}
"""Field → its environment variable. Those that end in _MB count megabytes (10⁶ bytes)."""

_SAME: Final = (("block_tokens", "page_size"), ("kv_limit", "kv_cache_num_tokens"))
"""Two ways each to say one thing."""


class MemoryConfig(BaseModel):
    """How much of each tier may be used, and how.

    Sizes are bytes, or text like "24GB" or "512MiB"; 0 switches a tier off.

    "auto" sizes are chosen from what is free when the engine starts. Raises ConfigError for anything unknown,
    malformed or not available in this version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)

    vram_limit: int | Auto = "auto"
    """Bytes of device memory for all: weights, pages, ring, workspace. On a CPU: of the arena in RAM."""
    kv_limit: int | Auto = "auto"
    """Bytes of device memory for pages and ring alone; auto leaves them what vram_limit has left."""
    kv_cache_num_tokens: int | Auto = "auto"
    """Tokens whose pages the device holds, another way to say kv_limit; the ring comes on top."""
    host_memory: int | Auto = "auto"
    """Bytes of the host tier; auto is off on a CPU."""
    nvme_path: str = "auto"
    """Folder of the disk tier. One that is named keeps its pages for the next process: they can reveal prompts. auto is
    one in the cache folder, whose files have no name and vanish with the process."""
    nvme_limit: int | Auto = "auto"
    """Bytes of the disk tier: of all its files together."""
    nvme_ttl: int | Auto = "auto"
    """Seconds, or text like "7d", after which a page in a named folder is let go of; auto is never."""
    nvme_flush: str = "background"
    """What kept pages survive: background, also the loss of power; none, the end of the process alone."""
    nvme_read_only: bool = False
    """Read the pages that another process keeps in the named folder, and write none."""
    block_tokens: int | Auto = "auto"
    """Tokens of a page, a multiple of 16 up to 256; auto follows from the model's geometry."""
    page_size: int | Auto = "auto"
    """Bytes of a page, another way to say block_tokens: the largest page that fits is used."""
    policy: str = "auto"
    """Which page to evict where the future is unknown; auto lets several duel. docs/policies.md."""
    prefetch_strategy: str = "sequential"
    """Which pages to bring before they are asked for: none, or sequential (the next ones in layer order)."""
    prefetch_depth: int | Auto = "auto"
    """The most reads in flight; auto is 4."""
    prefetch_ahead: int | Auto = "auto"
    """How many layers early pages are asked for."""
    overlap_streams: int | Auto = "auto"
    """Copy streams of a GPU; without one only 0 and auto are possible."""
    compression: str = "none"
    """Lossless codec of pages on disk. docs/codecs.md says what each saves."""
    kv_cache_dtype: str = "auto"
    """How keys and values are kept, in every tier: auto is the model's dtype; int8 and fp8 halve the bytes and lose
    a little. docs/kv-formats.md says how much."""

    if TYPE_CHECKING:  # what is accepted is wider than what is kept

        def __init__(
            self,
            *,
            vram_limit: int | str = "auto",
            kv_limit: int | str = "auto",
            kv_cache_num_tokens: int | Auto = "auto",
            host_memory: int | str = "auto",
            nvme_path: str | Path = "auto",
            nvme_limit: int | str = "auto",
            nvme_ttl: int | str = "auto",
            nvme_flush: str = "background",
            nvme_read_only: bool = False,
            block_tokens: int | Auto = "auto",
            page_size: int | str = "auto",
            policy: str = "auto",
            prefetch_strategy: str = "sequential",
            prefetch_depth: int | Auto = "auto",
            prefetch_ahead: int | Auto = "auto",
            overlap_streams: int | Auto = "auto",
            compression: str = "none",
            kv_cache_dtype: str = "auto",
        ) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            raise ConfigError(
                f"memory settings must be named values, not {settings!r}: MemoryConfig(kv_limit='64MB')"
            )
        check_keys(settings, cls.model_fields, "setting")
        return settings

    @field_validator(*_SIZES, mode="before")
    @classmethod
    def _size(cls, value: object, info: ValidationInfo) -> int | Auto:
        return "auto" if value == "auto" else parse_size(value, str(info.field_name))

    @field_validator(*_COUNTS, mode="before")
    @classmethod
    def _count(cls, value: object, info: ValidationInfo) -> int | Auto:
        name = str(info.field_name)
        return "auto" if value == "auto" else whole_number(value, name, _COUNTS[name])

    @field_validator("overlap_streams", mode="before")
    @classmethod
    def _streams(cls, value: object) -> int | Auto:
        if value != "auto" and whole_number(value, "overlap_streams", 0) != 0:
            raise ConfigError(
                f'overlap_streams={value!r} needs a GPU, which this version does not use: use "auto" or 0'
            )
        return "auto" if value == "auto" else 0

    @field_validator("nvme_ttl", mode="before")
    @classmethod
    def _duration(cls, value: object) -> int | Auto:
        return "auto" if value == "auto" else parse_duration(value, "nvme_ttl")

    @field_validator("nvme_read_only", mode="before")
    @classmethod
    def _switch(cls, value: object) -> bool:
        return yes_or_no(value, "nvme_read_only")

    @field_validator(*_CHOICES, mode="before")
    @classmethod
    def _choice(cls, value: object, info: ValidationInfo) -> str:
        name = str(info.field_name)
        if not isinstance(value, str) or value not in _CHOICES[name]:
            raise ConfigError(f"{name}={value!r} is not available: use {listed(_CHOICES[name])}")
        return value

    @field_validator("nvme_path", mode="before")
    @classmethod
    def _path(cls, value: object) -> str:
        if not isinstance(value, str | Path) or not str(value):
            raise ConfigError(
                f'nvme_path={value!r} is not a folder: use one like "~/.cache/tokenvm/kv", or "auto"'
            )
        return str(value) if value == "auto" else str(Path(value).expanduser())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.block_tokens != "auto" and (self.block_tokens % 16 or self.block_tokens > 256):
            raise ConfigError(
                f"block_tokens={self.block_tokens} is not a multiple of 16 up to 256: "
                "use 16, 32, 64, 128 or 256"
            )
        for one, other in _SAME:
            if getattr(self, one) != "auto" and getattr(self, other) != "auto":
                raise ConfigError(f"{one} and {other} say the same thing twice: leave one of them out")
        if self.page_size == 0:
            raise ConfigError('page_size=0 holds nothing: use a size like "4MB", or "auto"')
        return self

    def chosen(self) -> dict[str, Any]:
        """Return only the fields that were given, as `resolve` wants them."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings in force and, for each field, where its value came from."""

    config: MemoryConfig
    sources: Mapping[str, str]


def resolve(
    arguments: Mapping[str, Any],
    environ: Mapping[str, str],
    file: Mapping[str, Any],
    *,
    command_line: Mapping[str, Any] | None = None,
    file_name: str = "config.toml",
) -> Resolved:
    """Combine the places a setting can come from; argument > command line > environment > file > default.

    `file` is the [memory] table of the configuration file. Pure: reads nothing else. Raises ConfigError, also
    for a malformed value that would have lost.
    """
    layers: list[tuple[Callable[[str], str], Mapping[str, Any]]] = [
        (lambda _name: f"file {file_name}", file),
        (lambda name: f"environment {VARIABLES[name]}", _from_environment(environ)),
        (lambda name: f"command line --{name.replace('_', '-')}", command_line or {}),
        (lambda _name: "argument", arguments),
    ]
    values: dict[str, Any] = {}
    sources = dict.fromkeys(MemoryConfig.model_fields, "default")
    for origin, layer in layers:
        given = MemoryConfig.model_validate(layer).chosen()
        _make_way(given, values, sources)
        values |= given
        sources |= {name: origin(name) for name in given}
    return Resolved(MemoryConfig.model_validate(values), sources)


def config_path(environ: Mapping[str, str]) -> Path:
    """Return where the configuration file is: $XDG_CONFIG_HOME/tokenvm/config.toml, else below ~/.config."""
    return Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "tokenvm" / "config.toml"


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the [memory] table of a configuration file, empty without one; ConfigError if malformed."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): correct it or delete it") from error
    check_keys(tables, ("memory",), f"table in {path}")
    memory = tables.get("memory", {})
    if not isinstance(memory, dict):
        raise ConfigError(
            f'{path}: memory must be a table: write [memory], then lines like kv_limit = "64MB"'
        )
    return memory


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Field → value for the variables that are set and not empty."""
    found = {name: environ[variable] for name, variable in VARIABLES.items() if environ.get(variable)}
    return {
        name: megabytes(VARIABLES[name], text) if name in _MB_VARIABLES else text
        for name, text in found.items()
    }


def _make_way(given: Mapping[str, Any], values: dict[str, Any], sources: dict[str, str]) -> None:
    """Let a page size replace a lower layer's block_tokens and the other way round: they are one setting."""
    for name, other in (*_SAME, *(pair[::-1] for pair in _SAME)):
        if given.get(name, "auto") != "auto" and other in values and other not in given:
            del values[other]
            sources[other] = "default"
