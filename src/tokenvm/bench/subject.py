"""What is measured: a model under a limit, its sequences made by reading or by filling pages."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from tokenvm.bench.job import kv_bytes, unlimited, with_memory
from tokenvm.bench.link import LinkedDevice
from tokenvm.bench.seed import Pages, computed_pages, random_pages
from tokenvm.borrowed.load import load_any_model
from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, build_engine, needs_of
from tokenvm.errors import ConfigError
from tokenvm.kernels.native import threads as team_size
from tokenvm.llm import make_settings
from tokenvm.memory.codec import CODECS, make_codec
from tokenvm.memory.cpu import CpuDevice
from tokenvm.memory.layout import PageLayout
from tokenvm.models.fetch import resolve_model
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer

WARM_STEPS = 3

_COPIES_IN_FLIGHT = 4


@dataclass(frozen=True, slots=True)
class Paging:
    """Where KV may lie: `share` of what is needed on the device (1: all of it), the rest below.

    `kv_limit` in bytes replaces the share. `link_bytes_per_s` puts the rest into host memory behind an emulated link.
    """

    share: float = 1.0
    codec: str = "none"
    kv_limit: int | None = None
    below: Literal["disk", "host"] = "disk"
    link_bytes_per_s: float | None = None

    @property
    def resident(self) -> bool:
        """Whether everything is on the device."""
        return self.share >= 1 and self.kv_limit is None


@dataclass(frozen=True, slots=True)
class Subject:
    """A loaded model and the settings it is measured under."""

    name: str
    model: LoadedModel
    settings: Settings
    lock: Path | None = None

    @property
    def threads(self) -> int:
        """How many threads the kernels share a step among."""
        return self.settings.threads or team_size()

    @contextmanager
    def engine(self, paging: Paging, tokens: int) -> Iterator[Engine]:
        """Lend an engine with room for `tokens` tokens of one sequence."""
        engine = build_engine(self.model, self._limited(paging, tokens), self._backend(paging))
        try:
            yield engine
        finally:
            engine.close()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock file meanwhile, if there is one."""
        with turn(self.lock):
            yield

    def beyond_training(self, tokens: int) -> Subject:
        """Return the same model, allowed contexts of `tokens` that it was never trained for; only times make sense."""
        spec = self.model.spec
        if tokens <= spec.max_model_len:
            return self
        longer = dataclasses.replace(spec, max_model_len=tokens)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, spec=longer))

    def check_fits(self, context: int, tokens: int) -> None:
        """Raise ConfigError where context and answer exceed the model."""
        most = self.model.spec.max_model_len
        if context + tokens > most:
            raise ConfigError(
                f"--context {context} and {tokens} tokens after it exceed the model's {most}: "
                f"type --context {most - tokens}"
            )

    def ids(self, count: int, seed: int = 0) -> list[int]:
        """Return random token ids."""
        return random.Random(seed).choices(range(self.model.spec.vocab_size), k=count)

    def text_ids(self, most: int) -> list[int]:
        """Return the ids of an English text, at most `most`."""
        text = resources.files("tokenvm").joinpath("texts/constitution.txt").read_text("utf-8")
        return Tokenizer.from_folder(resolve_model(self.name)).encode(text)[:most]

    def kv_bytes(self, tokens: int, share: float = 1.0) -> int:
        """Return the KV bytes that a share of `tokens` tokens may take: whole pages, and never below the minimum."""
        return kv_bytes(self.model, self.settings, tokens, share)[1]

    def _limited(self, paging: Paging, tokens: int) -> Settings:
        if paging.resident:
            return unlimited(self.settings)
        allowed = paging.kv_limit or self.kv_bytes(tokens, paging.share)
        room = 2 * self.kv_bytes(tokens) if paging.below == "host" else 0
        update: dict[str, Any] = {"kv_limit": allowed, "host_memory": room}
        if paging.below == "host":
            update["nvme_limit"] = 0
        update |= codec_update(paging.codec)
        memory = MemoryConfig.model_validate({**self.settings.memory.chosen(), **update})
        return with_memory(self.settings, memory)

    def _backend(self, paging: Paging) -> LinkedDevice | None:
        if paging.link_bytes_per_s is None:
            return None
        return LinkedDevice(CpuDevice(_COPIES_IN_FLIGHT), paging.link_bytes_per_s)


def open_subject(
    model: str, dtype: str, memory: MemoryConfig, threads: int | None, lock: Path | None = None
) -> Subject:
    """Load a model to be measured, one sequence at a time."""
    loaded = load_any_model(resolve_model(model), dtype)
    settings = make_settings(memory, max_num_seqs=1, threads=threads)
    # what was measured before is not found again
    return Subject(model, loaded, dataclasses.replace(settings, keep_pages=False), lock)


@contextmanager
def turn(lock: Path | None) -> Iterator[None]:
    """Hold the lock of a file meanwhile, so that several jobs on a machine are timed one after another."""
    if lock is None:
        yield
        return
    fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def page_layout(subject: Subject) -> PageLayout:
    """Return how the model's pages are cut into parts."""
    _, geometry = needs_of(subject.model, subject.settings)
    return PageLayout(subject.model.spec.layers, geometry.part_bytes)


def made_pages(subject: Subject, context: int, computed: bool) -> Pages:
    """Return pages to fill sequences with: those of a real text of up to `context` tokens, or of random numbers."""
    kept = subject.settings.memory.kv_cache_dtype
    if kept != "auto":
        raise ConfigError(f'pages cannot be filled with kv_cache_dtype="{kept}": measure this with "auto"')
    if not computed:
        _, geometry = needs_of(subject.model, subject.settings)
        return random_pages(geometry, subject.model.spec.layers)
    ids = subject.text_ids(context)
    with subject.turn(), subject.engine(Paging(), len(ids) + 2) as engine:
        (seq,) = engine.add(request(ids, 2))
        read_prompt(engine)
        return computed_pages(engine, seq)


def codec_update(codec: str) -> dict[str, str]:
    """Return the settings that put pages on disk through a codec."""
    if codec == "none":
        return {}
    return {"compression": codec}


def known_codecs() -> list[str]:
    """Return the lossless codecs that pages can be put through here, "none" first."""
    return [name for name in CODECS if _installed(name)]


def _installed(codec: str) -> bool:
    try:
        make_codec(codec)
    except ConfigError:
        return False
    return True


def request(ids: list[int], tokens: int) -> Request:
    """Ask for exactly `tokens` greedy tokens after a prompt."""
    return Request("bench", tuple(ids), SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))


def read_prompt(engine: Engine) -> float:
    """Step until the first token; return the seconds that took."""
    began_s = time.monotonic()
    while not engine.step().choices:
        pass
    return time.monotonic() - began_s


def decode_steps(engine: Engine) -> list[float]:
    """Step until nothing is left to do; return the seconds of each step after the first few."""
    seconds: list[float] = []
    while engine.has_work:
        if len(seconds) == WARM_STEPS:
            engine.account.restart()
        began_s = time.monotonic()
        engine.step()
        seconds.append(time.monotonic() - began_s)
    return seconds[WARM_STEPS:]


def streamed_bytes(stats: dict[str, Any]) -> float:
    """Return the bytes that one step read from below the device."""
    moved = stats["moved_bytes"]
    return float(moved["nvme_read"] + moved["h2d"]) / max(1, int(stats["steps"]))
