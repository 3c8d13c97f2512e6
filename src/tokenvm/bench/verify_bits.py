"""Does anything but the tokens before it change a token's bits: limits, chunks, batch-mates, threads, tiers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tokenvm.config import MemoryConfig
from tokenvm.engine.budget import Needs, minimum_kv_bytes
from tokenvm.engine.launch import Settings, needs_of
from tokenvm.llm import LLM
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.outputs import RequestOutput
from tokenvm.schedule.plan import Plan
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer

Below = Literal["nothing", "disk", "host", "host and disk"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to run the first prompt, or with `together` all of them at once.

    `share` of the KV memory they need is allowed: 1 for no limit, 0 for the smallest legal one.
    """

    topic: str
    name: str
    share: float = 1.0
    below: Below = "nothing"
    chunk_tokens: int = 512
    threads: int = 2
    together: bool = False
    prefetch: str = "sequential"

    @property
    def limited(self) -> bool:
        """Whether the pages cannot all be on the device."""
        return self.share < 1


def _disk(topic: str, name: str, share: float, **more: Any) -> Trial:
    return Trial(topic, name, share, "disk", **more)


SHORT_TRIALS = (
    _disk("memory limit", "1/2 of the KV memory", 0.5),
    _disk("memory limit", "the smallest legal limit", 0),
    _disk("chunk size", "chunks of 40 tokens, the smallest legal limit", 0, chunk_tokens=40),
    Trial("batch-mates", "with two other prompts", together=True),
    _disk("batch-mates", "with two other prompts, 1/2 of the KV memory", 0.5, together=True),
    _disk("threads", "one thread, the smallest legal limit", 0, threads=1),
    Trial("host tier", "the smallest legal limit, the rest in host memory", 0, "host"),
)
FULL_TRIALS = (
    _disk("memory limit", "1/2 of the KV memory", 0.5),
    _disk("memory limit", "1/10 of the KV memory", 0.1),
    _disk("memory limit", "the smallest legal limit", 0),
    Trial("chunk size", "chunks of 64 tokens", chunk_tokens=64),
    Trial("chunk size", "chunks of 1,000 tokens", chunk_tokens=1000),
    _disk("chunk size", "chunks of 200 tokens, 1/10 of the KV memory", 0.1, chunk_tokens=200),
    Trial("batch-mates", "with three other prompts", together=True),
    _disk("batch-mates", "with three other prompts, 1/4 of the KV memory", 0.25, together=True),
    _disk("batch-mates", "with three other prompts, the smallest legal limit", 0, together=True),
    Trial("threads", "one thread", threads=1),
    _disk("threads", "one thread, 1/10 of the KV memory", 0.1, threads=1),
    Trial("host tier", "1/10 of the KV memory, the rest in host memory", 0.1, "host"),
    Trial("host tier", "1/10 of the KV memory, half of the rest on disk", 0.1, "host and disk"),
    _disk("reading ahead", "1/10 of the KV memory, no reading ahead", 0.1, prefetch="none"),
)


@dataclass(frozen=True, slots=True)
class Bits:
    """What one prompt said: tokens, log-probabilities of the best, a digest of the fp32 logits of every step."""

    tokens: tuple[int, ...]
    logprobs: tuple[tuple[tuple[int, float], ...], ...]
    logits: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one trial. `problems` says what was wrong, empty if nothing was."""

    trial: Trial
    sequences: int
    tokens: int
    problems: tuple[str, ...]
    stats: dict[str, Any]


@dataclass
class Grid:
    """Trials of one loaded model over the same prompts; each must say what every prompt says alone, without limits."""

    model: LoadedModel
    tokenizer: Tokenizer
    base: Settings
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    _alone: list[Bits] = field(default_factory=list)

    def measure_alone(self) -> Iterator[int]:
        """Run each prompt alone with all its pages on the device; yield its tokens as they are done."""
        plain = Trial("alone", "alone")
        for prompt in self.prompts:
            bits, _, _ = self._run(plain, [prompt], self._settings(plain, "auto", 0))
            self._alone += bits
            yield len(prompt)

    def run(self, trial: Trial) -> Finding:
        """Run one trial and say whether every bit is as it was alone, and whether it did what it was meant to."""
        prompts = self.prompts if trial.together else self.prompts[:1]
        needs = needs_of(self.model, self._settings(trial, "auto", 0))[0]
        pages = self._pages(prompts)
        limit = self._limit(trial, needs, pages, len(prompts))
        settings = self._settings(trial, limit if trial.limited else "auto", pages * needs.page_bytes)
        bits, crowd, stats = self._run(trial, prompts, settings)
        problems = [
            f"prompt {at} differs {_where(one, alone)}"
            for at, (one, alone) in enumerate(zip(bits, self._alone, strict=False))
            if one != alone
        ]
        problems += _not_as_meant(trial, stats, limit, crowd)
        return Finding(trial, len(bits), sum(len(one.tokens) for one in bits), tuple(problems), stats)

    def _pages(self, prompts: Sequence[Sequence[int]]) -> int:
        block_tokens = needs_of(self.model, self.base)[1].block_tokens
        return sum(-(-(len(prompt) + self.max_tokens - 1) // block_tokens) for prompt in prompts)

    def _limit(self, trial: Trial, needs: Needs, pages: int, sequences: int) -> int:
        return max(minimum_kv_bytes(needs, sequences), int(trial.share * pages * needs.page_bytes))

    def _settings(self, trial: Trial, kv_limit: int | Literal["auto"], below_bytes: int) -> Settings:
        host = {"nothing": 0, "disk": 0, "host": below_bytes, "host and disk": below_bytes // 2}[trial.below]
        disk: int | Literal["auto"] = "auto" if "disk" in trial.below else 0
        memory = self.base.memory.model_copy(
            update={
                "vram_limit": "auto",
                "kv_limit": kv_limit,
                "host_memory": host,
                "nvme_limit": disk,
                "prefetch_strategy": trial.prefetch,
            }
        )
        return replace(
            self.base,
            memory=memory,
            max_num_seqs=len(self.prompts),
            max_tokens_per_forward=trial.chunk_tokens,
            threads=trial.threads,
            lookahead=False,
        )

    def _run(
        self, trial: Trial, prompts: Sequence[Sequence[int]], settings: Settings
    ) -> tuple[list[Bits], int, dict[str, Any]]:
        """Return each prompt's bits, how many sequences ran at once at most, and the engine's figures."""
        params = SamplingParams(temperature=0, max_tokens=self.max_tokens, ignore_eos=True, logprobs=4)
        with LLM.from_loaded(self.model, self.tokenizer, settings) as llm:
            watch = _Watch()
            llm.engine.runner.tap = watch.see
            outputs = llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False
            )
            bits = [_bits(output, watch.rows(seq)) for seq, output in enumerate(outputs)]
            return bits, watch.crowd, llm.stats()


class _Watch:
    """Sees the logits of every step. A fresh engine numbers its sequences in the order of the prompts."""

    def __init__(self) -> None:
        self.crowd = 0
        self._rows: dict[tuple[int, int], bytes] = {}

    def see(self, plan: Plan, logits: torch.Tensor) -> None:
        self.crowd = max(self.crowd, len(plan.spans))
        sampled = (span for span in plan.spans if span.samples)
        for span, row in zip(sampled, logits.numpy(), strict=True):
            digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            self._rows[span.seq, span.end] = digest  # a step that is repeated replaces its rows

    def rows(self, seq: int) -> tuple[bytes, ...]:
        return tuple(self._rows[key] for key in sorted(self._rows) if key[0] == seq)


def settings_for(base: MemoryConfig, folder: Path, block_tokens: int | None) -> Settings:
    """Return what all trials share; `block_tokens` replaces what `base` says."""
    if block_tokens is not None:
        base = base.model_copy(update={"block_tokens": block_tokens, "page_size": "auto"})
    return Settings(base, folder)


def _bits(output: RequestOutput, logits: tuple[bytes, ...]) -> Bits:
    completion = output.outputs[0]
    logprobs = tuple(
        tuple((token, one.logprob) for token, one in step.items()) for step in completion.logprobs or ()
    )
    return Bits(tuple(completion.token_ids), logprobs, logits)


def _where(one: Bits, alone: Bits) -> str:
    """Name the first step that differs."""
    pairs = zip(one.logits, alone.logits, strict=False)
    at = next((step for step, (a, b) in enumerate(pairs, start=1) if a != b), None)
    return "in how many tokens it has" if at is None else f"from token {at} on"


def _not_as_meant(trial: Trial, stats: dict[str, Any], limit: int, crowd: int) -> list[str]:
    """Say which of the paths that the trial is about were not taken, and whether a limit was broken."""
    moved = stats["moved_bytes"]
    held = stats["tiers"]["device"]["high_water_bytes"] + stats["ring_bytes"]
    checks = (
        (trial.limited and held > limit, f"{held} bytes were held, {limit} were allowed"),
        (trial.limited != (stats["streamed_pages"] > 0), f"{stats['streamed_pages']} pages were streamed"),
        (("disk" in trial.below) != (moved["nvme_read"] > 0), f"{moved['nvme_read']} bytes came from disk"),
        (("host" in trial.below) != (moved["h2d"] > 0), f"{moved['h2d']} bytes came from host memory"),
        (trial.together and crowd < 2, "the prompts ran one after another"),
    )
    return [text for wrong, text in checks if wrong]
