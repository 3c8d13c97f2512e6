"""`tokenvm verify`: the same tokens as Transformers, and the same bits whatever the memory, batch or threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from tokenvm.bench.job import kv_bytes
from tokenvm.bench.screen import Screen
from tokenvm.bench.verify_bits import FULL_TRIALS, SHORT_TRIALS, Finding, Grid, Trial, settings_for
from tokenvm.bench.verify_parity import Parity, compare_prompts
from tokenvm.bridges.reference import Reference
from tokenvm.clock import RealClock
from tokenvm.config import MemoryConfig
from tokenvm.engine.launch import Settings
from tokenvm.errors import ModelError
from tokenvm.llm import LLM, make_settings
from tokenvm.models.fetch import resolve_model
from tokenvm.models.weights.pack import LoadedModel, load_model
from tokenvm.sizes import format_size
from tokenvm.tokenizer import Tokenizer

PARITY_SHARE: Final = 0.1
"""Of the KV memory that the longest prompt needs: what is compared with Transformers comes from disk."""


@dataclass(frozen=True, slots=True)
class Series:
    """Trials of one dtype. The first of the prompts, `lengths` tokens long, also runs alone.

    Pages are small enough for every share of the memory to be another number of them.
    """

    dtype: str
    block_tokens: int
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is compared. Lengths in tokens; those a model cannot hold are left out.

    `parity_block_tokens` None: as large as pages are by default.
    """

    parity_lengths: tuple[int, ...]
    parity_tokens: int
    parity_block_tokens: int | None
    bits: tuple[Series, ...]
    bits_tokens: int
    trials: tuple[Trial, ...]


SHORT: Final = Extent(
    parity_lengths=(1, 31, 33, 150),
    parity_tokens=16,
    parity_block_tokens=16,
    bits=(Series("float32", 16, (150, 40, 33)), Series("bfloat16", 16, (300, 97, 33))),
    bits_tokens=12,
    trials=SHORT_TRIALS,
)
FULL: Final = Extent(
    parity_lengths=(
        *(1, 2, 17, 64, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025),
        *(1536, 2049, 3000, 6000),
    ),
    parity_tokens=64,
    parity_block_tokens=None,
    bits=(Series("float32", 32, (1500, 513, 300, 129)), Series("bfloat16", 64, (3000, 1025, 700, 129))),
    bits_tokens=24,
    trials=FULL_TRIALS,
)


def run_verify(model: str, *, full: bool, base: MemoryConfig) -> dict[str, Any]:
    """Compare, print a card, and return it as plain values; "passed" says whether everything was as it must be.

    Raises ConfigError where Transformers is missing, ModelError for a model that cannot be had.
    """
    screen, clock = Screen(), RealClock()
    began_s = clock.now_s()
    extent = FULL if full else SHORT
    with screen.getting_model() as report:
        folder = resolve_model(model, progress=report)
    subject = _Subject(folder, make_settings(base), screen, extent)
    parity, findings = subject.compare()
    return _card(screen, model, full, parity, findings, clock.now_s() - began_s)


class _Subject:
    """One model under comparison."""

    def __init__(self, folder: Path, settings: Settings, screen: Screen, extent: Extent) -> None:
        self._folder = folder
        self._settings = settings
        self._screen = screen
        self._extent = extent
        self._tokenizer = Tokenizer.from_folder(folder)
        text = resources.files("tokenvm").joinpath("texts/constitution.txt").read_text("utf-8")
        self._text = self._tokenizer.encode(text, add_special_tokens=False)
        if not self._text:
            raise ModelError(f"the tokenizer in {folder} makes no tokens of English text: pass another model")

    def compare(self) -> tuple[dict[str, Any], dict[str, list[Finding]]]:
        """Run everything; one dtype's weights are in memory at a time, the reference's beside the first."""
        reference = Reference(self._folder)
        model = load_model(self._folder, "float32")
        parity = self._parity(model, reference)
        del reference
        findings: dict[str, list[Finding]] = {}
        for series in self._extent.bits:
            if series.dtype != "float32":
                model = load_model(self._folder, series.dtype)
            findings[series.dtype] = list(self._findings(model, series))
        return parity, findings

    def _parity(self, model: LoadedModel, reference: Reference) -> dict[str, Any]:
        """Compare with the reference while pages come from disk."""
        tokens = self._extent.parity_tokens
        prompts = self._prompts(self._extent.parity_lengths, model.spec.max_model_len - tokens)
        settings = self._parity_settings(model, max(len(prompt) for prompt in prompts) + tokens)
        parities: list[Parity] = []
        with LLM.from_loaded(model, self._tokenizer, settings) as llm:
            compared = compare_prompts(llm, reference, prompts, tokens)
            for at, prompt in enumerate(prompts, start=1):
                what = f"Transformers {at}/{len(prompts)}, prompt length {len(prompt):,}"
                with self._screen.console.status(what):
                    parities.append(next(compared))
                one = parities[-1]
                ending = "a tie" if one.excused else one.problem or "equal"
                self._say(f"{what}: {one.steps} more {ending}, logits within {one.max_difference:.1e}")
            return _parity(parities, llm.stats())

    def _parity_settings(self, model: LoadedModel, tokens: int) -> Settings:
        limits: dict[str, Any] = {
            "vram_limit": "auto",
            "kv_limit": "auto",
            "host_memory": 0,
            "nvme_limit": "auto",
            "kv_cache_dtype": "auto",
        }
        memory = self._settings.memory.model_copy(update=limits)
        settings = settings_for(memory, self._settings.disk_path, self._extent.parity_block_tokens)
        settings = replace(settings, max_model_len=tokens, max_num_seqs=1)
        allowed = kv_bytes(model, settings, tokens, PARITY_SHARE)[1]
        return replace(settings, memory=settings.memory.model_copy(update={"kv_limit": allowed}))

    def _findings(self, model: LoadedModel, series: Series) -> Iterator[Finding]:
        tokens = self._extent.bits_tokens
        prompts = self._prompts(series.lengths, model.spec.max_model_len - tokens)
        settings = settings_for(self._settings.memory, self._settings.disk_path, series.block_tokens)
        grid = Grid(model, self._tokenizer, settings, prompts, tokens)
        with self._screen.console.status(f"{series.dtype}: every prompt alone, without limits"):
            sizes = [f"{size:,}" for size in grid.measure_alone()]
        self._say(f"{series.dtype}: prompts of {', '.join(sizes)} tokens, each alone, without limits: done")
        for at, trial in enumerate(self._extent.trials, start=1):
            what = f"{series.dtype} {at}/{len(self._extent.trials)}, {trial.name}"
            with self._screen.console.status(what):
                finding = grid.run(trial)
            self._say(f"{what}: {_verdict(finding)}")
            yield finding

    def _say(self, line: str) -> None:
        self._screen.console.print(line, soft_wrap=True, markup=False)

    def _prompts(self, lengths: Sequence[int], most: int) -> list[list[int]]:
        """Cut prompts out of the text, each from another place; those longer than `most` are left out or cut."""
        fitting = [length for length in lengths if length <= most] or [most]
        return [self._cut(37 * at, length) for at, length in enumerate(fitting)]

    def _cut(self, begin: int, length: int) -> list[int]:
        return [self._text[(begin + at) % len(self._text)] for at in range(length)]


def _verdict(finding: Finding) -> str:
    if finding.problems:
        return "; ".join(finding.problems)
    moved, pages = finding.stats["moved_bytes"], finding.stats["streamed_pages"]
    if not pages:
        return "identical"
    sources = (("disk", moved["nvme_read"]), ("host memory", moved["h2d"]))
    read = " and ".join(f"{format_size(nbytes)} from {name}" for name, nbytes in sources if nbytes)
    return f"identical, {pages:,} pages streamed, {read}"


def _card(
    screen: Screen,
    model: str,
    full: bool,
    parity: dict[str, Any],
    findings: dict[str, list[Finding]],
    seconds: float,
) -> dict[str, Any]:
    rows = [
        _topic(dtype, topic, found) for dtype, every in findings.items() for topic, found in _by_topic(every)
    ]
    passed = not parity["problems"] and not any(row["problems"] for row in rows)
    _print(screen, parity, rows, passed, seconds)
    return {
        "verify": "full" if full else "short",
        "model": model,
        "passed": passed,
        "parity": parity,
        "bits": rows,
        "seconds": round(seconds, 1),
    }


def _parity(parities: list[Parity], stats: dict[str, Any]) -> dict[str, Any]:
    problems = [f"{one.prompt_tokens} tokens: {one.problem}" for one in parities if one.problem]
    if not stats["moved_bytes"]["nvme_read"]:
        problems.append("no page came from disk")
    return {
        "prompt_tokens": [one.prompt_tokens for one in parities],
        "tokens": sum(one.steps for one in parities),
        "excused": sum(one.excused for one in parities),
        "max_logit_difference": max(one.max_difference for one in parities),
        "streamed_pages": stats["streamed_pages"],
        "nvme_read_bytes": stats["moved_bytes"]["nvme_read"],
        "problems": problems,
    }


def _by_topic(findings: list[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    for topic in dict.fromkeys(finding.trial.topic for finding in findings):
        yield topic, [finding for finding in findings if finding.trial.topic == topic]


def _topic(dtype: str, topic: str, findings: list[Finding]) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "topic": topic,
        "runs": len(findings),
        "sequences": sum(finding.sequences for finding in findings),
        "tokens": sum(finding.tokens for finding in findings),
        "streamed_pages": sum(finding.stats["streamed_pages"] for finding in findings),
        "nvme_read_bytes": sum(finding.stats["moved_bytes"]["nvme_read"] for finding in findings),
        "h2d_bytes": sum(finding.stats["moved_bytes"]["h2d"] for finding in findings),
        "problems": [f"{finding.trial.name}: {text}" for finding in findings for text in finding.problems],
    }


def _print(
    screen: Screen, parity: dict[str, Any], rows: list[dict[str, Any]], passed: bool, seconds: float
) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "runs", "prompts", "tokens", "result"):
        table.add_column(column, justify="right" if column in ("runs", "prompts", "tokens") else "left")
    ties = f", {parity['excused']} ended at a tie" if parity["excused"] else ""
    good = f"tokens equal, logits within {parity['max_logit_difference']:.1e}{ties}"
    prompts = str(len(parity["prompt_tokens"]))
    result = _result(parity["problems"], good)
    table.add_row("Transformers, float32", prompts, prompts, f"{parity['tokens']:,}", result)
    for row in rows:
        counts = (f"{row[name]:,}" for name in ("runs", "sequences", "tokens"))
        table.add_row(f"{row['topic']}, {row['dtype']}", *counts, _result(row["problems"], "every bit equal"))
    screen.console.print(table)
    verdict = "passed" if passed else "FAILED: this is a bug, please report it with `tokenvm env`"
    screen.console.print(f"{verdict} in {seconds:.0f} s", style="bold")


def _result(problems: list[str], good: str) -> str:
    return "; ".join(problems) if problems else good
