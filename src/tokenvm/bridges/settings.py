"""Where the settings of memory that is not an engine's come from: argument, environment, file, default."""

from __future__ import annotations

import os
from pathlib import Path

from tokenvm.config import MemoryConfig, config_path, read_config_file, resolve
from tokenvm.engine.launch import Settings
from tokenvm.errors import ConfigError
from tokenvm.models.fetch import default_cache_dir


def settings_of(config: MemoryConfig | None) -> Settings:
    """Combine `config` with environment, configuration file and defaults; refuse what only an engine does."""
    arguments = {} if config is None else config.chosen()
    memory = resolve(arguments, os.environ, read_config_file(config_path(os.environ))).config
    if memory.nvme_read_only:
        raise ConfigError(
            "nvme_read_only works in LLM: here no page outlives the process, and none is found: leave it out"
        )
    path = memory.nvme_path
    return Settings(memory, default_cache_dir(os.environ) / "kv" if path == "auto" else Path(path))
