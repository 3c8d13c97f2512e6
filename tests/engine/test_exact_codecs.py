"""A codec on disk changes no bit: small device tiers against a device with room for all."""

from functools import cache
from pathlib import Path

import pytest
import torch
from fixtures_engine import Said, assert_spilled, page_bytes, prompt, running, speak, tiny_model

from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, build_engine
from tokenvm.errors import ConfigError
from tokenvm.kernels import native
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.sim import SimDevice
from tokenvm.vocab import Tier

CODECS = ["bitpack", "lz4", "zstd"]
LENGTHS = (70, 129, 33)
TOKENS = 20
MODEL = tiny_model(wide=True)


@cache
def alone() -> list[Said]:
    """What the prompts say with all their pages in memory."""
    with running(MODEL, Path("unused")) as engine:
        return speak(engine, [prompt(length) for length in LENGTHS], TOKENS)


def disk_of(engine: Engine) -> DiskStore:
    store = engine.kvcache.vm._stores[Tier.DISK]
    assert isinstance(store, DiskStore)
    return store


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("device_pages", [3, 5, 8])
def test_under_a_limit(device_pages: int, codec: str, tmp_path: Path) -> None:
    with running(MODEL, tmp_path, device_pages=device_pages, compression=codec) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == alone()
        assert_spilled(engine, MODEL, device_pages)
        disk = disk_of(engine)
        written = disk.checksums != 0
        assert disk.packed[written].mean() > 0.9, "KV fits the size class"
        stats = engine.stats()
        share = disk.far_bytes / disk.layout.part_stride
        assert stats["moved_bytes"]["nvme_read"] < (share + 0.1) * streamed_bytes(engine)
        assert disk.high_water_bytes <= 64 * page_bytes(MODEL)


def streamed_bytes(engine: Engine) -> int:
    """Bytes that would be read from disk for the pages that were streamed; promoted ones come on top."""
    return int(engine.stats()["streamed_pages"]) * page_bytes(MODEL)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "how",
    [{"host_pages": 4}, {"prefetch_strategy": "none"}, {"prefetch_depth": 1}, {"threads": 2}],
    ids=["host, then disk", "not ahead", "one read at a time", "two threads"],
)
def test_however_pages_are_read(how: dict[str, object], codec: str, tmp_path: Path) -> None:
    with running(MODEL, tmp_path, device_pages=5, compression=codec, **how) as engine:  # type: ignore[arg-type]
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == alone()
        assert_spilled(engine, MODEL, 5, host="host_pages" in how)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seed", range(2))
def test_on_a_simulated_device(seed: int, codec: str, tmp_path: Path) -> None:
    device = SimDevice(seed)
    with running(MODEL, tmp_path, device_pages=4, compression=codec, backend=device) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == alone()
        assert_spilled(engine, MODEL, 4)
    assert device.counters.out_of_order > 0


@pytest.mark.parametrize("level", native.isa_levels())
def test_on_every_instruction_set(level: str, tmp_path: Path) -> None:
    before = native.isa()
    native.set_isa(level)
    try:
        with running(MODEL, tmp_path, device_pages=3, compression="bitpack") as engine:
            assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == alone()
    finally:
        native.set_isa(before)


@pytest.mark.parametrize(
    ("setting", "dtype", "wide", "said"),
    [
        ({"compression": "bitpack"}, torch.float32, True, "float32 KV"),
        ({"compression": "zstd"}, torch.float32, True, "float32 KV"),
        ({"compression": "bitpack"}, torch.bfloat16, False, "more block_tokens than 16"),
        ({"compression": "bitpack", "kv_cache_dtype": "int8"}, torch.bfloat16, True, "int8 KV"),
    ],
    ids=str,
)
def test_what_a_codec_cannot_help_is_refused(
    setting: dict[str, str], dtype: torch.dtype, wide: bool, said: str, tmp_path: Path
) -> None:
    memory = MemoryConfig.model_validate({"block_tokens": 16} | setting)
    with pytest.raises(ConfigError, match=said):
        build_engine(tiny_model(dtype, wide=wide), Settings(memory, tmp_path))
