"""What is planned before the start is what is taken at the start, and what is said to fit fits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures_engine import BLOCK_TOKENS, greedy, kv_limit_for, page_bytes, prompt, tiny_model, tiny_spec

from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, build_engine, plan_engine
from tokenvm.engine.runner import PARTIAL_BYTES, workspace_bytes
from tokenvm.engine.startup import StartupPlan
from tokenvm.errors import LimitTooSmall
from tokenvm.models.spec import MlpSpec
from tokenvm.models.weights.outline import outline
from tokenvm.schedule.request import Request
from tokenvm.vocab import Tier


def settings(folder: Path, pages: int = 9, kv_cache_dtype: str = "auto", **numbers: int) -> Settings:
    model = tiny_model()
    memory = MemoryConfig(
        kv_limit=kv_limit_for(model, pages, kv_cache_dtype),
        host_memory=5 * page_bytes(model, kv_cache_dtype),
        nvme_limit=40 * page_bytes(model, kv_cache_dtype),
        block_tokens=BLOCK_TOKENS,
        kv_cache_dtype=kv_cache_dtype,
    )
    return Settings(memory, folder, **{"threads": 1, "max_num_seqs": 4, **numbers})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_an_outline_weighs_what_the_model_weighs(dtype: torch.dtype, wide: bool) -> None:
    model = tiny_model(dtype, wide=wide)
    outlined = outline(model.spec, dtype)
    assert outlined.spec == model.spec
    assert outlined.weights.nbytes == model.weights.nbytes
    assert outlined.weights.ends.embedding.storage.is_meta
    tied = outline(replace(model.spec, tied_embeddings=True), dtype)
    assert tied.weights.nbytes == model.weights.nbytes - model.weights.ends.lm_head.nbytes


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_the_plan_of_an_outline_is_what_an_engine_takes(tmp_path: Path, kv_cache_dtype: str) -> None:
    model, asked = tiny_model(), settings(tmp_path, kv_cache_dtype=kv_cache_dtype)
    engine = build_engine(model, asked)
    plan, vm = engine.plan, engine.kvcache.vm
    assert plan == plan_engine(outline(model.spec, torch.bfloat16), asked)
    capacity = [vm.ledger.capacity(tier) for tier in Tier]
    assert capacity == [plan.device_pages, plan.host_pages, plan.disk_pages] == [9, 5, 40]
    assert engine.stats()["ring_bytes"] == plan.ring_bytes
    assert plan.page_bytes == vm.layout.page_bytes
    assert plan.weight_bytes == model.weights.nbytes
    assert plan.kv_bytes <= asked.memory.kv_limit
    assert plan.device_bytes == plan.weight_bytes + plan.workspace_bytes + plan.kv_bytes
    assert (plan.dtype, plan.kv_format) == ("bfloat16", "bfloat16" if kv_cache_dtype == "auto" else "int8")
    engine.close()


def test_a_plan_that_cannot_be_is_refused_like_a_start(tmp_path: Path) -> None:
    tight = Settings(MemoryConfig(kv_limit=5), tmp_path)
    with pytest.raises(LimitTooSmall) as planned:
        plan_engine(outline(tiny_spec(), torch.bfloat16), tight)
    with pytest.raises(LimitTooSmall) as started:
        build_engine(tiny_model(), tight)
    assert str(planned.value) == str(started.value)


def streamed(engine: Engine, sequences: int, tokens: int) -> int:
    """Run so many sequences of so many tokens at once, each to its end; return how many pages were streamed."""
    for at in range(sequences):
        engine.add(Request(f"r{at}", prompt(tokens - 4, seed=at), greedy(4)))
    while engine.has_work:
        engine.step()
    return int(engine.stats()["streamed_pages"])


@pytest.mark.parametrize("tokens", [17, 33, 48, 49, 81])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_as_many_as_are_said_to_be_resident_are_never_streamed(
    tmp_path: Path, tokens: int, kv_cache_dtype: str
) -> None:
    engine = build_engine(tiny_model(), settings(tmp_path, 12, kv_cache_dtype, max_num_seqs=8))
    fit = engine.plan.fit(tokens)
    assert 0 < fit.resident <= fit.in_all <= engine.plan.crowd <= 8
    assert streamed(engine, fit.resident, tokens) == 0
    engine.close()


def test_what_fits_is_counted_by_hand() -> None:
    plan = StartupPlan(
        weight_bytes=1000,
        workspace_bytes=100,
        page_bytes=10,
        block_tokens=16,
        device_pages=12,
        ring_bytes=7,
        host_pages=0,
        disk_pages=30,
        max_model_len=512,
        max_num_seqs=16,
        largest_batch_rows=64,
        open_slots=1,
        threads=1,
        dtype="bfloat16",
        kv_format="bfloat16",
    )
    assert (plan.kv_bytes, plan.device_bytes, plan.kv_cache_num_tokens, plan.crowd) == (127, 1227, 192, 11)
    assert [(fit.resident, fit.in_all) for fit in map(plan.fit, (1, 17, 18, 65, 193, 513))] == [
        (11, 11),  # the last token needs no KV: one page
        (11, 11),
        (6, 11),
        (3, 7),
        (1, 2),
        (0, 0),
    ]
    assert [fit.tokens for fit in plan.fits] == [512, 128, 32]
    lone = replace(plan, disk_pages=0)
    assert [(fit.resident, fit.in_all) for fit in map(lone.fit, (17, 65, 193))] == [(11, 11), (3, 2), (1, 0)]
    assert plan.as_dict()["fits"][0] == {"tokens": 512, "resident": 0, "in_all": 0}
    assert plan.as_dict()["device_bytes"] == 1227


def test_gates_and_ups_that_are_not_multiplied_at_once_are_counted() -> None:
    spec = tiny_spec()
    rows = 64

    def needed(intermediate: int) -> int:
        changed = replace(spec, mlp=MlpSpec(intermediate))
        return workspace_bytes(changed, rows, torch.bfloat16, 4, BLOCK_TOKENS, 1)

    assert needed(112) - needed(96) < rows * 112 * 4
    assert needed(100) - needed(96) >= rows * 2 * 100 * 4


def test_partial_results_are_counted_up_to_their_bound() -> None:
    spec = replace(tiny_spec(), max_model_len=1 << 22)

    def needed(threads: int, rows: int = 64) -> int:
        return workspace_bytes(spec, rows, torch.bfloat16, 4, BLOCK_TOKENS, threads)

    assert PARTIAL_BYTES <= needed(2) - needed(1) < PARTIAL_BYTES + (1 << 20)
    assert needed(3) - needed(2) < 1 << 20
