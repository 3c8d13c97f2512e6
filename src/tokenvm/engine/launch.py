"""Puts an engine together: budget, tiers, cache, scheduler, runner."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenvm.clock import RealClock
from tokenvm.config import MemoryConfig
from tokenvm.engine.budget import Budget, Needs, plan_budget
from tokenvm.engine.compression import READ_BYTES, bounce_bytes, codec_of
from tokenvm.engine.engine import Engine
from tokenvm.engine.geometry import geometry_of, raw_slots
from tokenvm.engine.runner import Runner, workspace_bytes
from tokenvm.engine.startup import StartupPlan, plan_startup
from tokenvm.engine.warm_up import commit, warm_up
from tokenvm.errors import ConfigError, StorageError
from tokenvm.kernels.native import NUMERICS_ID, set_threads
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kvcache import KVCache
from tokenvm.machine import free_disk_bytes, free_memory_bytes, usable_cores
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.codec import Codec
from tokenvm.memory.cpu import CpuDevice, crc32c
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.host import HostPool
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.tier import NullStore, TierStore
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.open_pages import OpenPages, passing_bytes
from tokenvm.residency.policy.registry import make_device_policy, make_policy
from tokenvm.schedule.limits import Limits
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Tier

DEFAULT_MAX_NUM_SEQS = 16
DEFAULT_MAX_TOKENS_PER_FORWARD = 512


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is asked to be. None means: the model's or this module's default.

    With `warm_up` it takes all its memory before it stands, so that no later step can run out of it.
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


def build_engine(model: LoadedModel, settings: Settings, backend: DeviceBackend | None = None) -> Engine:
    """Make an engine for a loaded model.

    Raises:
        LimitTooSmall: a memory limit is below the minimum. ConfigError: a number makes no sense. StorageError: a tier
            cannot be opened.
    """
    made = _prepare(model, settings, free_memory_bytes())
    set_threads(made.limits.threads)
    device = backend or CpuDevice(_reads_in_flight(settings.memory), READ_BYTES)
    vm = _memory(
        device, made.layout, made.budget, settings, codec_of(settings.memory, made.geometry, made.layout)
    )
    try:
        return _assemble(model, vm, made, settings)
    except BaseException:
        vm.close()
        raise


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
    budget = plan_budget(settings.memory, needs, free_bytes, _disk_room(settings, layout.page_bytes))
    dtype = str(model.weights.dtype).removeprefix("torch.")
    kv_format = dtype if geometry.kv_format == "raw" else geometry.kv_format
    plan = plan_startup(needs, budget, **asdict(limits), dtype=dtype, kv_format=kv_format)
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
    bounce = bounce_bytes(codec_of(memory, geometry, layout), layout, _reads_in_flight(memory))
    return Needs(
        page_bytes=layout.page_bytes,
        part_bytes=layout.part_stride,
        weight_bytes=model.weights.nbytes,
        workspace_bytes=workspace + passing_bytes(geometry, limits.max_tokens_per_forward) + bounce,
        wanted_pages=limits.max_num_seqs * (pages_each + raw) + 1,
        open_slots=1 + raw,
        block_tokens=geometry.block_tokens,
    )


def _disk_room(settings: Settings, page_bytes: int) -> int:
    """Return the free bytes below the disk tier's folder; StorageError if the user named it and nothing fits there."""
    free = free_disk_bytes(settings.disk_path)
    memory = settings.memory
    if memory.nvme_path != "auto" and memory.nvme_limit != 0 and free < 2 * page_bytes:
        raise StorageError(
            f"there is no room for pages in {settings.disk_path} ({free} bytes free): "
            "set nvme_path to a folder on another disk, or nvme_limit=0"
        )
    return free


def _reads_in_flight(memory: MemoryConfig) -> int:
    return 4 if memory.prefetch_depth == "auto" else memory.prefetch_depth


def _memory(
    backend: DeviceBackend, layout: PageLayout, budget: Budget, settings: Settings, codec: Codec
) -> MemoryManager:
    backend.use(codec)
    arena = DeviceArena(backend, budget.device_slots, layout, poison=settings.poison)
    host: TierStore = NullStore(Tier.HOST, layout)
    if budget.host_slots:
        host = HostPool(backend, budget.host_slots, layout)
    if settings.warm_up:
        commit(backend, (arena, host))
    disk: TierStore = NullStore(Tier.DISK, layout)
    if budget.disk_bytes:
        disk = DiskStore(settings.disk_path, budget.disk_bytes, layout, codec=codec)
    name = settings.memory.policy
    policy = make_device_policy(name, budget.device_slots)
    return MemoryManager(backend, arena, (host, disk), budget.ring_slots, policy, make_policy(name))


def _assemble(model: LoadedModel, vm: MemoryManager, made: _Prepared, settings: Settings) -> Engine:
    clock, limits, geometry = RealClock(), made.limits, made.geometry
    kvcache = KVCache(
        vm,
        geometry.block_tokens,
        fingerprint(model, geometry),
        clock,
        prefetch_ahead=_layers_ahead(settings.memory),
        open_pages=OpenPages(vm, geometry, limits.max_tokens_per_forward) if geometry.lossy else None,
        prefix_caching=settings.enable_prefix_caching,
        shared_attention=settings.shared_attention,
    )
    ledger = vm.ledger
    lower = ledger.capacity(Tier.HOST) + ledger.capacity(Tier.DISK)
    scheduler = Scheduler(
        Limits(
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
        ),
        kvcache,
    )
    runner = Runner(model, geometry, limits.max_tokens_per_forward, limits.max_model_len)
    if settings.warm_up:
        warm_up(vm, runner, geometry, made.plan)
    return Engine(scheduler, kvcache, runner, clock, made.plan, settings.seed)


def _layers_ahead(memory: MemoryConfig) -> int | None:
    """None: as far ahead as the ring reaches."""
    if memory.prefetch_strategy == "none":
        return 0
    return None if memory.prefetch_ahead == "auto" else memory.prefetch_ahead


def fingerprint(model: LoadedModel, geometry: PartGeometry) -> bytes:
    """Name all that shapes KV bytes besides the tokens: weights, dtype, rope, block_tokens, layout and numerics."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((model.spec, geometry, geometry.layout_id, NUMERICS_ID)).encode())
    for address, nbytes in _weights(model):
        digest.update(crc32c(address, nbytes).to_bytes(4, "little"))
    return digest.digest()


def _weights(model: LoadedModel) -> Iterator[tuple[int, int]]:
    """Address and bytes of every weight that keys and values depend on."""
    layers = model.weights.layers
    matrices = [matrix for layer in layers for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    for matrix in (*matrices, model.weights.ends.embedding):
        yield matrix.storage.data_ptr(), matrix.nbytes
    for norm in (norm for layer in layers for norm in (layer.attn_norm, layer.mlp_norm)):
        yield norm.data_ptr(), norm.nbytes
