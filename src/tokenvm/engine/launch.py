"""Puts an engine together: budget, tiers, cache, scheduler, runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tokenvm.clock import Clock, RealClock
from tokenvm.config import MemoryConfig
from tokenvm.engine.budget import Budget, Needs, plan_budget
from tokenvm.engine.compression import READ_BYTES, bounce_bytes, codec_of
from tokenvm.engine.disk_tier import disk_pages, disk_room, keep_of
from tokenvm.engine.engine import Engine
from tokenvm.engine.fingerprint import fingerprint
from tokenvm.engine.geometry import geometry_of, raw_slots
from tokenvm.engine.prefetch import layers_ahead, reads_in_flight
from tokenvm.engine.runner import Runner, workspace_bytes
from tokenvm.engine.sampling.sampler import Sampler
from tokenvm.engine.startup import StartupPlan, plan_startup
from tokenvm.engine.tiers import Disk, open_memory
from tokenvm.engine.warm_up import warm_up
from tokenvm.errors import ConfigError
from tokenvm.kernels.native import set_threads
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kvcache import KVCache
from tokenvm.machine import free_memory_bytes, usable_cores
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.codec import Codec
from tokenvm.memory.cpu import CpuDevice
from tokenvm.memory.kept_disk import Keep
from tokenvm.memory.kept_size import geometry_of_store
from tokenvm.memory.layout import PageLayout
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.open_pages import OpenPages, passing_bytes
from tokenvm.schedule.limits import Limits
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.tokenizer import Tokenizer
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Tier

DEFAULT_MAX_NUM_SEQS = 16
DEFAULT_MAX_TOKENS_PER_FORWARD = 512


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is asked to be. None means: the model's or this module's default.

    With `warm_up` it takes all its memory before it stands, so that no later step can run out of it. With `keep_pages`
    the pages in `disk_path` outlive it, and those that are there are found.
    """

    memory: MemoryConfig
    disk_path: Path
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_tokens_per_forward: int | None = None
    threads: int | None = None
    seed: int = 0
    poison: bool = False
    lookahead: bool = True
    enable_prefix_caching: bool = True
    shared_attention: bool = True
    warm_up: bool = False
    keep_pages: bool = False


def needs_of(model: LoadedModel, settings: Settings) -> tuple[Needs, PartGeometry]:
    """Return what the model asks for in bytes under these settings, and the geometry of its pages."""
    geometry = geometry_of(model, settings.memory)
    layout = PageLayout(model.spec.layers, geometry.part_bytes)
    return _needs(model, layout, _whole_limits(model, settings), geometry, settings.memory), geometry


def plan_engine(model: LoadedModel, settings: Settings) -> StartupPlan:
    """Return what `build_engine` would take for this model, which may be an outline. Takes nothing.

    Raises what `build_engine` raises.
    """
    return _prepare(model, settings, free_memory_bytes() - model.weights.nbytes).plan


def build_engine(
    model: LoadedModel,
    settings: Settings,
    backend: DeviceBackend | None = None,
    clock: Clock | None = None,
    tokenizer: Callable[[], Tokenizer] | None = None,
) -> Engine:
    """Make an engine for a loaded model. `tokenizer` is asked for once somebody wants a structured answer.

    Raises:
        LimitTooSmall: a memory limit is below the minimum. ConfigError: a number makes no sense. StorageError: a tier
            cannot be opened.
    """
    made = _prepare(model, settings, free_memory_bytes())
    set_threads(made.limits.threads)
    device = backend or CpuDevice(reads_in_flight(settings.memory), READ_BYTES)
    named = fingerprint(model, made.geometry, made.limits.max_model_len)
    keep = keep_of(settings.memory, named) if _keeps(settings) else None
    codec = codec_of(settings.memory, made.geometry, made.layout)
    clock = clock or RealClock()
    vm = _memory(device, made.layout, made.budget, settings, codec, keep, clock)
    try:
        return _assemble(model, vm, made, settings, named, clock, tokenizer)
    except BaseException:
        vm.close()
        raise


def build_memory(
    layout: PageLayout,
    settings: Settings,
    codec: Codec,
    *,
    wanted_pages: int,
    block_tokens: int = 16,
    other_bytes: int = 0,
    backend: DeviceBackend | None = None,
) -> MemoryManager:
    """Make the memory of pages that are not an engine's; `other_bytes` count against `vram_limit` too.

    Where a limit is left open, room for `wanted_pages` is enough. Raises as `build_engine`.
    """
    needs = Needs(
        page_bytes=layout.page_bytes,
        part_bytes=layout.part_stride,
        weight_bytes=other_bytes,
        workspace_bytes=bounce_bytes(codec, layout, reads_in_flight(settings.memory)),
        wanted_pages=wanted_pages,
        block_tokens=block_tokens,
    )
    room = disk_room(settings.memory, settings.disk_path, layout.page_bytes, keeps=False)
    budget = plan_budget(settings.memory, needs, free_memory_bytes(), room)
    device = backend or CpuDevice(reads_in_flight(settings.memory), READ_BYTES)
    return _memory(device, layout, budget, settings, codec, None, RealClock())


@dataclass(frozen=True, slots=True)
class _Prepared:
    """All that is decided before anything is taken."""

    limits: _Numbers
    geometry: PartGeometry
    layout: PageLayout
    budget: Budget
    plan: StartupPlan


def _prepare(model: LoadedModel, settings: Settings, free_bytes: int) -> _Prepared:
    limits = _whole_limits(model, settings)
    geometry = geometry_of(model, settings.memory)
    layout = PageLayout(model.spec.layers, geometry.part_bytes)
    needs = _needs(model, layout, limits, geometry, settings.memory)
    keeps = _keeps(settings)
    room = disk_room(settings.memory, settings.disk_path, layout.page_bytes, keeps=keeps)
    budget = plan_budget(settings.memory, needs, free_bytes, room)
    store = geometry_of_store(layout, codec_of(settings.memory, geometry, layout))
    dtype = str(model.weights.dtype).removeprefix("torch.")
    kv_format = dtype if geometry.kv_format == "raw" else geometry.kv_format
    plan = plan_startup(needs, budget, **asdict(limits), dtype=dtype, kv_format=kv_format)
    plan = replace(plan, disk_pages=disk_pages(budget.disk_bytes, store, keeps=keeps))
    return _Prepared(limits, geometry, layout, budget, plan)


@dataclass(frozen=True, slots=True)
class _Numbers:
    max_model_len: int
    max_num_seqs: int
    max_tokens_per_forward: int
    threads: int


def _whole_limits(model: LoadedModel, settings: Settings) -> _Numbers:
    given = {
        "max_model_len": _or(settings.max_model_len, model.spec.max_model_len),
        "max_num_seqs": _or(settings.max_num_seqs, DEFAULT_MAX_NUM_SEQS),
        "max_tokens_per_forward": _or(settings.max_tokens_per_forward, DEFAULT_MAX_TOKENS_PER_FORWARD),
        "threads": _or(settings.threads, usable_cores()),
    }
    for name, value in given.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r} is not possible: give a whole number of at least 1")
    if given["max_model_len"] > model.spec.max_model_len:
        raise ConfigError(
            f"max_model_len={given['max_model_len']} is beyond what the model was made for: "
            f"give at most {model.spec.max_model_len}"
        )
    return _Numbers(**given)


def _or(given: int | None, default: int) -> int:
    return default if given is None else given


def _needs(
    model: LoadedModel, layout: PageLayout, limits: _Numbers, geometry: PartGeometry, memory: MemoryConfig
) -> Needs:
    pages_each = -(-limits.max_model_len // geometry.block_tokens)
    workspace = workspace_bytes(
        model.spec,
        limits.max_tokens_per_forward,
        model.weights.dtype,
        limits.max_num_seqs,
        geometry.block_tokens,
        limits.threads,
    )
    raw = raw_slots(layout, geometry)
    bounce = bounce_bytes(codec_of(memory, geometry, layout), layout, reads_in_flight(memory))
    return Needs(
        page_bytes=layout.page_bytes,
        part_bytes=layout.part_stride,
        weight_bytes=model.weights.nbytes,
        workspace_bytes=workspace + passing_bytes(geometry, limits.max_tokens_per_forward) + bounce,
        wanted_pages=limits.max_num_seqs * (pages_each + raw) + 1,
        open_slots=1 + raw,
        block_tokens=geometry.block_tokens,
    )


def _keeps(settings: Settings) -> bool:
    """Whether pages outlive the engine: without prefix caching nobody would find them."""
    keeps = settings.keep_pages and settings.enable_prefix_caching
    if settings.memory.nvme_read_only and not keeps:
        raise ConfigError(
            "nvme_read_only reads the pages that another process keeps: set nvme_path to its folder"
        )
    return keeps


def _memory(
    backend: DeviceBackend,
    layout: PageLayout,
    budget: Budget,
    settings: Settings,
    codec: Codec,
    keep: Keep | None,
    clock: Clock,
) -> MemoryManager:
    backend.use(codec)
    disk = Disk(settings.disk_path, budget.disk_bytes, codec, keep)
    name = settings.memory.policy
    return open_memory(backend, layout, budget, disk, name, clock, settings.poison, settings.warm_up)


def _assemble(
    model: LoadedModel,
    vm: MemoryManager,
    made: _Prepared,
    settings: Settings,
    named: bytes,
    clock: Clock,
    tokenizer: Callable[[], Tokenizer] | None,
) -> Engine:
    limits, geometry = made.limits, made.geometry
    kvcache = KVCache(
        vm,
        geometry.block_tokens,
        named,
        clock,
        prefetch_ahead=layers_ahead(settings.memory),
        open_pages=OpenPages(vm, geometry, limits.max_tokens_per_forward) if geometry.lossy else None,
        prefix_caching=settings.enable_prefix_caching,
        shared_attention=settings.shared_attention,
    )
    scheduler = Scheduler(_limits(model, vm, made, settings), kvcache)
    runner = Runner(model, geometry, limits.max_tokens_per_forward, limits.max_model_len)
    sampler = Sampler(model.spec.vocab_size, model.spec.eos_token_ids, settings.seed, tokenizer)
    if settings.warm_up:
        sampler.begin()
        warm_up(vm, runner, geometry, made.plan)
    return Engine(scheduler, kvcache, runner, clock, made.plan, sampler)


def _limits(model: LoadedModel, vm: MemoryManager, made: _Prepared, settings: Settings) -> Limits:
    limits, geometry, ledger = made.limits, made.geometry, vm.ledger
    lower = ledger.capacity(Tier.HOST) + vm.keeping.capacity
    return Limits(
        max_num_seqs=limits.max_num_seqs,
        max_tokens_per_forward=limits.max_tokens_per_forward,
        max_model_len=limits.max_model_len,
        block_tokens=geometry.block_tokens,
        device_slots=ledger.capacity(Tier.DEVICE),
        held_pages=max(ledger.capacity(Tier.DEVICE) - 1, lower),
        vocab_size=model.spec.vocab_size,
        eos_token_ids=frozenset(model.spec.eos_token_ids),
        open_slots=1 + raw_slots(vm.layout, geometry),
        lower_pages=lower,
        lookahead=settings.lookahead,
    )
