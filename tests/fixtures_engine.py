"""A tiny random Llama in memory, engines around it with a few pages of device, and what they say, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch

from tokenvm.bench.toy import VOCAB_SIZE, tiny_model, tiny_spec
from tokenvm.clock import Clock
from tokenvm.config import MemoryConfig
from tokenvm.engine.budget import MIN_RING_PARTS, RING_SHARE, Needs, plan_budget
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, build_engine, needs_of
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.retry import BACK_OFF_S
from tokenvm.memory.sim_copy import SimCopy
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.schedule.plan import FinishedEvent, Plan
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.vocab import Tier

__all__ = ["VOCAB_SIZE", "tiny_model", "tiny_spec"]

BLOCK_TOKENS = 16
ATTEMPTS = 2 + len(BACK_OFF_S)
"""How often a part is read that is streamed: through the ring, then by itself, and as often again as it is retried."""
MAX_STEPS = 2000
"""More than any test takes: an engine that makes no progress fails instead of hanging."""


def needs(model: LoadedModel, kv_cache_dtype: str = "auto") -> Needs:
    """What a tiny model asks for when nothing but pages counts."""
    memory = MemoryConfig(block_tokens=BLOCK_TOKENS, kv_cache_dtype=kv_cache_dtype)
    asked, _ = needs_of(model, Settings(memory, Path("unused")))
    return replace(asked, weight_bytes=0, workspace_bytes=0, wanted_pages=1 << 20)


def page_bytes(model: LoadedModel, kv_cache_dtype: str = "auto") -> int:
    """Bytes of one page of a tiny model."""
    return needs(model, kv_cache_dtype).page_bytes


def kv_limit_for(model: LoadedModel, pages: int, kv_cache_dtype: str = "auto") -> int:
    """The smallest kv_limit that gives the device exactly `pages` slots beside the ring."""
    asked = needs(model, kv_cache_dtype)
    page, part = asked.page_bytes, asked.part_bytes
    first = pages * page + MIN_RING_PARTS * part
    last = first * RING_SHARE // (RING_SHARE - 1) + part
    fits = (
        limit
        for limit in range(first, last + part, part)
        if plan_budget(MemoryConfig(kv_limit=limit), asked, 0, 1 << 40).device_slots == pages
    )
    return next(fits)


def prompt(tokens: int, seed: int = 0) -> tuple[int, ...]:
    """Random ids, never an end token."""
    return tuple(np.random.default_rng([seed, tokens]).integers(3, VOCAB_SIZE, tokens).tolist())


def greedy(max_tokens: int) -> SamplingParams:
    """As many tokens as asked for, always the likeliest, with log-probabilities."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=3)


@contextmanager
def running(
    model: LoadedModel,
    folder: Path,
    *,
    device_pages: int | None = None,
    host_pages: int = 0,
    disk_pages: int = 64,
    backend: DeviceBackend | None = None,
    kv_cache_dtype: str = "auto",
    clock: Clock | None = None,
    **more: object,
) -> Iterator[Engine]:
    """An engine with poisoned free slots, whose laws are checked at the end; no `device_pages`: room for all.

    `more` are fields of Settings, or else of MemoryConfig. All sequences run at once unless `lookahead` is asked for,
    so that every path spills.
    """
    page = page_bytes(model, kv_cache_dtype)
    limits = {
        "kv_cache_dtype": kv_cache_dtype,
        "kv_limit": kv_limit_for(model, device_pages, kv_cache_dtype) if device_pages else "auto",
        "host_memory": host_pages * page,
        "nvme_limit": disk_pages * page if device_pages else 0,
        "block_tokens": BLOCK_TOKENS,
    }
    numbers = {"max_num_seqs": 4, "max_tokens_per_forward": 64, "threads": 1, "lookahead": False}
    known = {field.name for field in fields(Settings)}
    numbers |= {name: value for name, value in more.items() if name in known}
    limits |= {name: value for name, value in more.items() if name not in known}
    settings = Settings(MemoryConfig.model_validate(limits), folder, poison=True, **numbers)
    engine = build_engine(model, settings, backend, clock)
    try:
        yield engine
        engine.kvcache.check()
    finally:
        engine.close()


@dataclass
class Said:
    """What one request produced. `rows` are the bytes of the fp32 logits behind each token."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    reason: str = ""


OnStep = Callable[[Engine, int], None]


def speak(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_tokens: int = 8,
    *,
    params: SamplingParams | None = None,
    every_steps: int = 0,
    on_step: OnStep | None = None,
    deaf_to: Set[str] = frozenset(),
) -> list[Said]:
    """Run prompts to their end; each comes `every_steps` steps after the one before. Laws are checked every step.

    Requests named in `deaf_to`, which are running already, are not listened to.
    """
    said = {f"prompt-{at}": Said() for at in range(len(prompts))}
    shown: dict[int, bytes] = {}

    def tap(plan: Plan, logits: torch.Tensor) -> None:
        shown.clear()
        shown.update(zip(plan.sampled, (row.tobytes() for row in logits.numpy()), strict=True))

    engine.runner.tap = tap
    queue = [
        Request(name, tuple(ids), params or greedy(max_tokens))
        for name, ids in zip(said, prompts, strict=True)
    ]
    for step in range(MAX_STEPS):
        while queue and step >= every_steps * (len(prompts) - len(queue)):
            engine.add(queue.pop(0))
        if not queue and not engine.has_work:
            break
        _hear(engine, said, shown, deaf_to)
        if on_step is not None:
            on_step(engine, step)
    assert all(one.reason for one in said.values()), "the engine makes no progress"
    return list(said.values())


def _hear(engine: Engine, said: dict[str, Said], shown: dict[int, bytes], deaf_to: Set[str]) -> None:
    result = engine.step()
    engine.kvcache.check()
    for error in result.failures.values():
        raise error
    for event in result.events:
        if event.request_id in deaf_to:
            continue
        one = said[event.request_id]
        if isinstance(event, FinishedEvent):
            one.reason = event.reason
        else:
            choice = result.choices[event.seq]
            assert event.index == len(one.tokens)
            assert event.token == choice.token
            one.tokens.append(event.token)
            one.logprobs.append((*choice.best, (choice.token, choice.logprob)))
            one.rows.append(shown[event.seq])


class Lasting:
    """For SimDevice.fail_when: a copy that `fails` fails at each attempt, as one of a bad sector does, then no more."""

    def __init__(self, fails: Callable[[SimCopy], bool]) -> None:
        self._fails = fails
        self._left: dict[tuple[int, int, int], int] = {}

    def __call__(self, copy: SimCopy) -> bool:
        where = copy.kind, copy.fd, copy.place
        left = self._left.get(where, 0) or (ATTEMPTS if self._fails(copy) else 0)
        self._left[where] = max(0, left - 1)
        return left > 0


def used_slots(engine: Engine) -> list[int]:
    """Slots taken in each tier, once every prefix is forgotten and every move in flight has ended."""
    engine.kvcache.forget_prefixes()
    engine.kvcache.vm.finish_transfers()
    return [engine.kvcache.vm.ledger.used(tier) for tier in Tier]


def assert_spilled(
    engine: Engine,
    model: LoadedModel,
    device_pages: int,
    *,
    host: bool = False,
    disk: bool = True,
    kv_cache_dtype: str = "auto",
) -> None:
    """Pages were streamed from the tiers that are meant, and the device never held more than its limit."""
    stats = engine.stats()
    assert stats["streamed_pages"] > 0
    assert (stats["moved_bytes"]["nvme_read"] > 0) == disk
    assert (stats["moved_bytes"]["h2d"] > 0) == host
    assert engine.kvcache.vm.ledger.capacity(Tier.DEVICE) == device_pages
    held = stats["tiers"]["device"]["high_water_bytes"] + stats["ring_bytes"]
    assert held <= kv_limit_for(model, device_pages, kv_cache_dtype)
