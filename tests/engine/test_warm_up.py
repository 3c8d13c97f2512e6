"""After the warm-up no step asks the system for memory, and nothing else is different."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_engine import BLOCK_TOKENS, greedy, page_bytes, prompt, speak, tiny_model, used_slots
from test_memory_is_bounded import anonymous_bytes

from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, build_engine
from tokenvm.kernels.linear import pack
from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.spec import AttentionSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec
from tokenvm.models.weights.pack import LoadedModel, ModelWeights
from tokenvm.schedule.request import Request

HIDDEN, INNER, VOCAB, ROWS, SEQUENCES, CONTEXT = 128, 1000, 4096, 1024, 8, 2048
SLACK_BYTES = 2 << 20


def broad_model() -> LoadedModel:
    """Little arithmetic, large buffers; an MLP whose gates and ups are not multiplied at once."""
    heads = AttentionSpec(q_heads=4, kv_heads=2, head_dim=32, scale=0.2)
    spec = ModelSpec(
        architecture="LlamaForCausalLM",
        layers=2,
        hidden=HIDDEN,
        vocab_size=VOCAB,
        max_model_len=CONTEXT,
        attention=heads,
        rope=RopeSpec(theta=10_000.0),
        mlp=MlpSpec(INNER),
        norm=NormSpec(eps=1e-5),
        tied_embeddings=True,
        eos_token_ids=(),
        bos_token_ids=(),
    )
    source = torch.Generator().manual_seed(5)

    def matrix(rows: int, columns: int) -> Any:
        return pack((torch.randn(rows, columns, generator=source) * columns**-0.5).bfloat16())

    ones = torch.ones(HIDDEN)
    layers = tuple(
        LayerWeights(
            attn_norm=ones,
            qkv=matrix(heads.qkv_rows, HIDDEN),
            o=matrix(HIDDEN, heads.out_columns),
            mlp_norm=ones,
            gate_up=matrix(2 * INNER, HIDDEN),
            down=matrix(HIDDEN, INNER),
        )
        for _ in range(2)
    )
    embedding = matrix(VOCAB, HIDDEN)
    return LoadedModel(spec, ModelWeights(torch.bfloat16, layers, EndWeights(embedding, ones, embedding)))


def broad_engine(model: LoadedModel, folder: Path, *, warm_up: bool) -> Engine:
    memory = MemoryConfig(kv_limit="12MB", nvme_limit="64MB", block_tokens=64)
    return build_engine(
        model,
        Settings(
            memory,
            folder,
            threads=2,
            max_num_seqs=SEQUENCES,
            max_tokens_per_forward=ROWS,
            warm_up=warm_up,
        ),
    )


def growth_while_serving(engine: Engine) -> int:
    """Serve the largest batches there are, of short prompts at once and of long ones one by one; return the growth."""
    lengths = [ROWS // SEQUENCES] * SEQUENCES + [CONTEXT - 8] * 2
    rng = np.random.default_rng(0)
    requests = [
        Request(f"r{at}", tuple(rng.integers(0, VOCAB, length).tolist()), greedy(8))
        for at, length in enumerate(lengths)
    ]
    before, most = anonymous_bytes(), 0
    largest = 0
    for request in requests:
        engine.add(request)
    while engine.has_work:
        largest = max(largest, engine.step().tokens)
        most = max(most, anonymous_bytes() - before)
    assert largest == ROWS
    return most


def apart(work: Callable[[], None]) -> None:
    """Run on a thread of its own, whose kernels have no scratch yet."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


def test_growth_would_show(tmp_path: Path) -> None:
    def cold() -> None:
        engine = broad_engine(broad_model(), tmp_path, warm_up=False)
        assert growth_while_serving(engine) > 4 * SLACK_BYTES
        engine.close()

    apart(cold)


def test_nothing_grows_after_a_warm_up(tmp_path: Path) -> None:
    def warm() -> None:
        model = broad_model()
        before = anonymous_bytes()
        engine = broad_engine(model, tmp_path, warm_up=True)
        plan, taken = engine.plan, anonymous_bytes() - before
        assert plan.kv_bytes < taken <= plan.kv_bytes + plan.workspace_bytes + SLACK_BYTES
        assert growth_while_serving(engine) <= SLACK_BYTES
        engine.close()

    apart(warm)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_warm_engine_starts_at_nothing_and_says_the_same(
    tmp_path: Path, dtype: torch.dtype, kv_cache_dtype: str
) -> None:
    model = tiny_model(dtype)
    page = page_bytes(model, kv_cache_dtype)
    memory = MemoryConfig(
        kv_limit=14 * page,
        host_memory=10 * page,
        nvme_limit=64 * page,
        block_tokens=BLOCK_TOKENS,
        kv_cache_dtype=kv_cache_dtype,
    )
    prompts, heard = [prompt(100), prompt(37), prompt(3)], []
    for warm in (False, True):
        asked = Settings(
            memory, tmp_path, threads=2, max_num_seqs=3, max_tokens_per_forward=50, poison=True, warm_up=warm
        )
        engine = build_engine(model, asked)
        stats = engine.stats()
        assert stats["steps"] == 0
        assert used_slots(engine) == [0, 0, 0]
        assert [tier["high_water_bytes"] for tier in stats["tiers"].values()] == [0, 0, 0]
        assert not any(stats["moved_bytes"].values())
        heard.append(speak(engine, prompts, max_tokens=12))
        engine.close()
    assert heard[0] == heard[1]


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_num_seqs": 1, "max_tokens_per_forward": 1},
        {"max_num_seqs": 50, "max_tokens_per_forward": 7},
        {"max_num_seqs": 2, "max_tokens_per_forward": 600, "max_model_len": 20},
        {"max_num_seqs": 3, "max_tokens_per_forward": 5000},
    ],
    ids=str,
)
def test_batches_of_every_shape_are_tried(tmp_path: Path, numbers: dict[str, int]) -> None:
    memory = MemoryConfig(kv_limit=8 * page_bytes(tiny_model()), nvme_limit=0, block_tokens=BLOCK_TOKENS)
    engine = build_engine(tiny_model(), Settings(memory, tmp_path, threads=1, warm_up=True, **numbers))
    assert len(speak(engine, [prompt(9)], max_tokens=3)[0].tokens) == 3
    engine.close()
