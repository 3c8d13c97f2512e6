"""Settings: what is accepted, what is refused with which words, and which of several places wins."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tokenvm.config import VARIABLES, MemoryConfig, config_path, read_config_file, resolve
from tokenvm.errors import ConfigError


def test_everything_is_automatic_by_default() -> None:
    config = MemoryConfig()
    assert config.chosen() == {}
    sizes = {config.vram_limit, config.kv_limit, config.host_memory, config.nvme_path, config.nvme_limit}
    assert (
        sizes
        == {config.block_tokens, config.page_size, config.prefetch_depth, config.prefetch_ahead}
        == {"auto"}
    )
    assert (config.policy, config.prefetch_strategy, config.compression) == ("auto", "sequential", "none")


def test_sizes_counts_and_paths_are_read() -> None:
    config = MemoryConfig(
        vram_limit="4GB",
        kv_limit="64MiB",
        host_memory=0,
        nvme_limit=8,
        nvme_path="~/kv",
        block_tokens="64",
        prefetch_depth=4,
    )
    assert (config.vram_limit, config.kv_limit, config.host_memory, config.nvme_limit) == (
        4 * 10**9,
        2**26,
        0,
        8,
    )
    assert config.nvme_path == str(Path.home() / "kv")
    assert (config.block_tokens, config.prefetch_depth) == (64, 4)


def test_a_setting_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        MemoryConfig().kv_limit = 5


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"kv_limt": "64MB"}, "unknown setting 'kv_limt': did you mean kv_limit"),
        ({"zzz": 1}, "unknown setting 'zzz': use one of vram_limit, kv_limit"),
        ({"vram_limit": "lots"}, "vram_limit='lots' is not a size"),
        ({"nvme_limit": -1}, "nvme_limit=-1 is out of range"),
        ({"host_memory": None}, "host_memory=None"),
        ({"nvme_path": ""}, "nvme_path=''"),
        ({"nvme_path": 3}, "nvme_path=3"),
        ({"block_tokens": 24}, "block_tokens=24 is not a multiple of 16"),
        ({"block_tokens": 512}, "block_tokens=512 is not a multiple of 16 up to 256"),
        ({"block_tokens": 0}, "block_tokens=0"),
        ({"block_tokens": "many"}, "block_tokens='many'"),
        ({"page_size": 0}, "page_size=0"),
        ({"block_tokens": 64, "page_size": "1MB"}, "leave one of them out"),
        (
            {"kv_limit": "1MB", "kv_cache_num_tokens": 64},
            "kv_limit and kv_cache_num_tokens say the same thing",
        ),
        ({"kv_cache_num_tokens": 0}, "kv_cache_num_tokens=0"),
        ({"policy": "mru"}, 'policy=\'mru\' is not available: use "auto" or "lru"'),
        ({"prefetch_strategy": "attention_aware"}, 'use "none" or "sequential"'),
        ({"compression": "rle"}, 'compression=\'rle\' is not available: use "none" or "bitpack"'),
        ({"prefetch_depth": 0}, "prefetch_depth=0"),
        ({"prefetch_ahead": 1.5}, "prefetch_ahead=1.5"),
        ({"prefetch_ahead": True}, "prefetch_ahead=True"),
        ({"overlap_streams": 2}, "overlap_streams=2 needs a GPU"),
    ],
    ids=str,
)
def test_what_is_unknown_malformed_or_missing_here_is_refused(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MemoryConfig(**setting)


@pytest.mark.parametrize("value", ["auto", 0, "0"])
def test_no_copy_streams_is_fine(value: Any) -> None:
    assert MemoryConfig(overlap_streams=value).overlap_streams in ("auto", 0)


PLACES = ("argument", "command line --kv-limit", "environment TOKENVM_KV_MB", "file config.toml", "default")


@pytest.mark.parametrize("given", list(product([False, True], repeat=4)), ids=str)
def test_the_first_place_that_names_a_setting_wins(given: tuple[bool, bool, bool, bool]) -> None:
    argument, command_line, environment, file = given
    found = resolve(
        {"kv_limit": "1MB"} if argument else {},
        {"TOKENVM_KV_MB": "3"} if environment else {},
        {"kv_limit": "4MB"} if file else {},
        command_line={"kv_limit": "2MB"} if command_line else {},
    )
    winner = [*given, True].index(True)
    assert found.sources["kv_limit"] == PLACES[winner]
    assert found.config.kv_limit == (1_000_000, 2_000_000, 3_000_000, 4_000_000, "auto")[winner]


def test_every_setting_but_page_size_has_an_environment_name() -> None:
    assert VARIABLES.keys() == MemoryConfig.model_fields.keys() - {"page_size"}
    assert sorted(VARIABLES.values()) == [
        "TOKENVM_BLOCK_TOKENS",
        "TOKENVM_COMPRESSION",
        "TOKENVM_GPU_MB",
        "TOKENVM_HOST_MB",
        "TOKENVM_KV_CACHE_DTYPE",
        "TOKENVM_KV_MB",
        "TOKENVM_KV_TOKENS",
        "TOKENVM_NVME_FLUSH",
        "TOKENVM_NVME_MB",
        "TOKENVM_NVME_PATH",
        "TOKENVM_NVME_READ_ONLY",
        "TOKENVM_NVME_TTL",
        "TOKENVM_OVERLAP_STREAMS",
        "TOKENVM_POLICY",
        "TOKENVM_PREFETCH_AHEAD",
        "TOKENVM_PREFETCH_DEPTH",
        "TOKENVM_PREFETCH_STRATEGY",
    ]


def test_the_environment_is_read_as_text() -> None:
    environ = {
        "TOKENVM_GPU_MB": "1.5",
        "TOKENVM_HOST_MB": "0",
        "TOKENVM_NVME_MB": "",
        "TOKENVM_NVME_PATH": "/x",
        "TOKENVM_BLOCK_TOKENS": "auto",
        "TOKENVM_PREFETCH_DEPTH": "8",
        "PATH": "/bin",
    }
    found = resolve({}, environ, {})
    assert found.config.chosen() == {
        "vram_limit": 1_500_000,
        "host_memory": 0,
        "nvme_path": "/x",
        "block_tokens": "auto",
        "prefetch_depth": 8,
    }
    assert found.sources["nvme_limit"] == "default"
    assert found.sources["block_tokens"] == "environment TOKENVM_BLOCK_TOKENS"


def test_pages_that_are_kept_have_an_age_a_flush_and_readers() -> None:
    found = resolve({}, {"TOKENVM_NVME_TTL": "7d", "TOKENVM_NVME_READ_ONLY": "1"}, {"nvme_flush": "none"})
    assert (found.config.nvme_ttl, found.config.nvme_read_only) == (604_800, True)
    assert found.config.nvme_flush == "none"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nvme_ttl": "soon"}, "write it like"),
        ({"nvme_ttl": 0}, "at least"),
        ({"nvme_flush": "always"}, '"background" or "none"'),
        ({"nvme_read_only": "maybe"}, "neither true nor false"),
    ],
)
def test_how_pages_are_kept_is_checked(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MemoryConfig.model_validate(given)


@pytest.mark.parametrize("text", ["64MB", "-1", "many", "1.2.3", "nan"])
def test_a_malformed_number_of_megabytes_names_the_variable(text: str) -> None:
    with pytest.raises(ConfigError, match=r"TOKENVM_KV_MB=.*set TOKENVM_KV_MB=64"):
        resolve({}, {"TOKENVM_KV_MB": text}, {})


def test_a_malformed_value_is_refused_even_where_it_would_have_lost() -> None:
    with pytest.raises(ConfigError, match="policy='fifo'"):
        resolve({"policy": "lru"}, {}, {"policy": "fifo"})


def test_page_size_and_block_tokens_replace_each_other_between_places() -> None:
    found = resolve({"page_size": "2MB"}, {"TOKENVM_BLOCK_TOKENS": "64"}, {})
    assert (found.config.block_tokens, found.config.page_size) == ("auto", 2_000_000)
    assert (found.sources["block_tokens"], found.sources["page_size"]) == ("default", "argument")
    found = resolve({}, {"TOKENVM_BLOCK_TOKENS": "64"}, {"page_size": "2MB"})
    assert (found.config.block_tokens, found.config.page_size) == (64, "auto")


def test_a_budget_in_tokens_and_one_in_bytes_replace_each_other_between_places() -> None:
    found = resolve({"kv_cache_num_tokens": 64}, {"TOKENVM_KV_MB": "8"}, {})
    assert (found.config.kv_cache_num_tokens, found.config.kv_limit) == (64, "auto")
    found = resolve({}, {"TOKENVM_KV_TOKENS": "128"}, {"kv_limit": "2MB"})
    assert (found.config.kv_cache_num_tokens, found.config.kv_limit) == (128, "auto")
    found = resolve({"kv_limit": "2MB"}, {"TOKENVM_KV_TOKENS": "128"}, {})
    assert (found.config.kv_cache_num_tokens, found.config.kv_limit) == ("auto", 2_000_000)


def test_a_config_given_as_argument_counts_only_what_it_names() -> None:
    given = MemoryConfig(kv_limit="1MB").chosen()
    found = resolve(given, {"TOKENVM_GPU_MB": "9", "TOKENVM_KV_MB": "8"}, {})
    assert (found.config.kv_limit, found.config.vram_limit) == (1_000_000, 9_000_000)


def test_the_file_is_where_the_environment_says() -> None:
    assert config_path({"XDG_CONFIG_HOME": "/c"}) == Path("/c/tokenvm/config.toml")
    assert config_path({}) == Path.home() / ".config/tokenvm/config.toml"


def test_the_memory_table_of_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert read_config_file(path) == {}
    path.write_text('[memory]\nkv_limit = "64MB"\nblock_tokens = 32\n')
    assert read_config_file(path) == {"kv_limit": "64MB", "block_tokens": 32}
    path.write_text("")
    assert read_config_file(path) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [("[memory", "cannot be read"), ("[memroy]", "did you mean memory"), ("memory = 3", "must be a table")],
)
def test_a_malformed_file_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_config_file(path)
    assert str(path) in str(caught.value)
