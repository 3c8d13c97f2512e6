"""Sequences whose pages are filled go on as if they had been computed; other ways to page give the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fixtures_engine import BLOCK_TOKENS, greedy, prompt, running, tiny_model
from naive_paging import naive_run
from peers.kv_sources import KvFile, Mapped, MappedFixed, OnDemand
from perplexity import nll

from tokenvm.bench.link import LinkedDevice
from tokenvm.bench.seed import Pages, add_seeded, computed_pages, random_pages
from tokenvm.bench.subject import Paging, Subject, decode_steps, made_pages, read_prompt, request
from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, needs_of
from tokenvm.errors import ConfigError
from tokenvm.memory.cpu import CpuDevice
from tokenvm.schedule.request import Request

MODEL = tiny_model()
PROMPT = prompt(100)
TOKENS = 9


def finish(engine: Engine, seq: int) -> list[int]:
    sequence = engine.scheduler.sequence(seq)
    while engine.has_work:
        engine.step()
        engine.kvcache.check()
    return sequence.tokens[len(PROMPT) :]


@pytest.fixture(scope="module")
def computed() -> tuple[Pages, list[int]]:
    """The prompt's sealed pages and what follows it."""
    with running(MODEL, Path("unused")) as engine:
        seq = engine.add(Request("r", PROMPT, greedy(TOKENS)))
        while not engine.step().choices:
            pass
        pages = computed_pages(engine, seq)
        return pages, finish(engine, seq)


def test_pages_are_whole_and_all_there(computed: tuple[Pages, list[int]]) -> None:
    pages, _ = computed
    assert pages.parts.shape == (
        100 // BLOCK_TOKENS,
        3,
        MODEL.spec.part_bytes(BLOCK_TOKENS, MODEL.weights.dtype),
    )
    assert len({page.tobytes() for page in pages.parts}) == len(pages.parts)


@pytest.mark.parametrize("device_pages", [None, 3, 5])
def test_a_filled_sequence_goes_on_as_the_computed_one(
    computed: tuple[Pages, list[int]], device_pages: int | None, tmp_path: Path
) -> None:
    pages, said = computed
    with running(MODEL, tmp_path, device_pages=device_pages) as engine:
        seq = add_seeded(engine, Request("r", PROMPT, greedy(TOKENS)), pages)
        assert engine.kvcache.length_tokens(seq) == 96
        assert finish(engine, seq) == said
        assert (engine.stats()["streamed_pages"] > 0) == (device_pages is not None)


def test_a_link_changes_no_token(computed: tuple[Pages, list[int]], tmp_path: Path) -> None:
    pages, said = computed
    device = LinkedDevice(CpuDevice(2), 1e9)
    with running(MODEL, tmp_path, device_pages=3, host_pages=20, disk_pages=0, backend=device) as engine:
        seq = add_seeded(engine, Request("r", PROMPT, greedy(TOKENS)), pages)
        assert finish(engine, seq) == said
        assert engine.stats()["moved_bytes"]["h2d"] > 0


def subject(folder: Path) -> Subject:
    memory = MemoryConfig(block_tokens=BLOCK_TOKENS)
    return Subject("tiny", MODEL, Settings(memory, folder, max_num_seqs=1, threads=1))


@pytest.mark.parametrize("kind", [Mapped, MappedFixed, OnDemand])
@pytest.mark.parametrize("kept", [0, 5, 100])
def test_naive_paging_gives_the_same_tokens(
    computed: tuple[Pages, list[int]], kind: type[Mapped] | type[OnDemand], kept: int, tmp_path: Path
) -> None:
    pages, said = computed
    file = KvFile(tmp_path, pages, len(pages.parts))
    source = kind(file, kept * file.part_bytes)
    tokens, seconds = naive_run(subject(tmp_path), file, source, list(PROMPT), TOKENS)
    assert tokens == said
    assert len(seconds) > 0
    assert 0 <= source.resident_bytes() <= file.nbytes * max(1, kept)
    file.close()


def test_a_subject_lends_engines_under_a_limit(tmp_path: Path) -> None:
    mine = subject(tmp_path)
    _, geometry = needs_of(MODEL, mine.settings)
    pages = random_pages(geometry, MODEL.spec.layers)
    for paging in (Paging(), Paging(0.5), Paging(0.5, below="host", link_bytes_per_s=1e9)):
        with mine.engine(paging, 300) as engine:
            add_seeded(engine, request(mine.ids(200), 20), pages)
            assert read_prompt(engine) > 0
            assert len(decode_steps(engine)) == 16
            moved = engine.stats()["moved_bytes"]
            assert (moved["nvme_read"] > 0) == (not paging.resident and paging.below == "disk")
            assert (moved["h2d"] > 0) == (paging.below == "host")


def test_contexts_beyond_training_are_for_measurements_only(tmp_path: Path) -> None:
    mine = subject(tmp_path)
    assert mine.beyond_training(512) is mine
    assert mine.beyond_training(513).model.spec.max_model_len == 513
    assert mine.model.spec.max_model_len == 512


def test_likelihoods_do_not_depend_on_rows_a_pass(tmp_path: Path) -> None:
    mine = subject(tmp_path)
    found = []
    for rows in (7, 16, 64):
        with mine.engine(Paging(), 60) as engine:
            found.append(nll(engine, 0, list(prompt(60)), rows))
    assert len(found[0]) == 59
    assert found[0] == found[1] == found[2]
    assert 0 < np.mean(found[0]) < 30


def test_filled_pages_and_lossy_formats_do_not_mix(tmp_path: Path) -> None:
    memory = MemoryConfig(block_tokens=BLOCK_TOKENS, kv_cache_dtype="int8")
    with pytest.raises(ConfigError, match='kv_cache_dtype="int8"'):
        made_pages(Subject("tiny", MODEL, Settings(memory, tmp_path)), 100, computed=False)
