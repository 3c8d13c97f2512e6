"""A limit is a limit: while a context ten times larger is decoded, neither we nor the page cache hold the rest."""

import ctypes
import mmap
import os

import numpy as np
import torch
from fixtures_engine import greedy

from tokenvm.config import MemoryConfig
from tokenvm.engine.launch import Settings, build_engine
from tokenvm.kernels.linear import pack
from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.spec import AttentionSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec
from tokenvm.models.weights.pack import LoadedModel, ModelWeights
from tokenvm.schedule.request import Request

CONTEXT, HIDDEN, VOCAB, LAYERS, BLOCK = 4096, 64, 97, 8, 64
SLACK_BYTES = 16 << 20


def wide_model():
    """Little arithmetic, much KV: 8 KiB a token."""
    heads = AttentionSpec(q_heads=4, kv_heads=4, head_dim=64, scale=0.125)
    spec = ModelSpec(
        architecture="LlamaForCausalLM",
        layers=LAYERS,
        hidden=HIDDEN,
        vocab_size=VOCAB,
        max_model_len=CONTEXT + 64,
        attention=heads,
        rope=RopeSpec(theta=10_000.0),
        mlp=MlpSpec(intermediate=64),
        norm=NormSpec(eps=1e-5),
        tied_embeddings=True,
        eos_token_ids=(),
        bos_token_ids=(),
    )
    source = torch.Generator().manual_seed(5)

    def matrix(rows, columns):
        return pack((torch.randn(rows, columns, generator=source) * columns**-0.5).bfloat16())

    ones = torch.ones(HIDDEN)
    layers = tuple(
        LayerWeights(
            ones,
            matrix(heads.qkv_rows, HIDDEN),
            matrix(HIDDEN, heads.out_columns),
            ones,
            matrix(128, HIDDEN),
            matrix(HIDDEN, 64),
        )
        for _ in range(LAYERS)
    )
    embedding = matrix(VOCAB, HIDDEN)
    return LoadedModel(spec, ModelWeights(torch.bfloat16, layers, EndWeights(embedding, ones, embedding)))


def anonymous_bytes():
    with open("/proc/self/smaps_rollup", encoding="utf-8") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def cached_bytes(fd):
    """How much of a file the page cache holds (mincore)."""
    size = os.fstat(fd).st_size
    view = np.frombuffer(mmap.mmap(fd, size, prot=mmap.PROT_READ), np.uint8)
    pages = np.zeros(size // mmap.PAGESIZE, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data))
    assert libc.mincore(*arguments) == 0, os.strerror(ctypes.get_errno())
    return int((pages & 1).sum()) * mmap.PAGESIZE


def slab_fds():
    links = {int(fd): f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
    return [fd for fd, link in links.items() if os.path.islink(link) and "/kv/" in os.readlink(link)]


def test_memory_and_page_cache_stay_within_the_limit(disk_path):
    model = wide_model()
    context_bytes = model.spec.page_bytes(BLOCK, torch.bfloat16) * CONTEXT // BLOCK
    limit = context_bytes // 10
    memory = MemoryConfig(kv_limit=limit, host_memory=0, block_tokens=BLOCK, nvme_limit=2 * context_bytes)
    engine = build_engine(model, Settings(memory, disk_path / "kv", threads=1, poison=True))
    rng = np.random.default_rng(0)
    engine.add(Request("warm", tuple(rng.integers(0, VOCAB, 300).tolist()), greedy(2)))
    while engine.has_work:
        engine.step()
    before = anonymous_bytes()
    engine.add(Request("long", tuple(rng.integers(0, VOCAB, CONTEXT - 8).tolist()), greedy(8)))
    growth = 0
    while engine.has_work:
        engine.step()
        growth = max(growth, anonymous_bytes() - before)
    stats = engine.stats()
    held = stats["tiers"]["device"]["high_water_bytes"] + stats["ring_bytes"]
    fds = slab_fds()
    cached = sum(map(cached_bytes, fds))
    engine.close()
    assert context_bytes > limit + SLACK_BYTES, "a leak of the whole context would show"
    assert held <= limit
    assert stats["tiers"]["disk"]["hits"] > 0
    assert stats["moved_bytes"]["nvme_read"] > 5 * context_bytes
    assert growth <= limit + SLACK_BYTES
    assert fds
    assert cached <= SLACK_BYTES, "direct I/O leaves nothing behind, and buffered reads are told to"
