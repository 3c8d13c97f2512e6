"""The main job: answer a question about a long text with a fraction of the KV memory, and prove it changed nothing."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Self

from tokenvm.bench.screen import Screen
from tokenvm.borrowed.load import load_any_model
from tokenvm.config import MemoryConfig, Resolved
from tokenvm.engine.budget import minimum_kv_bytes
from tokenvm.engine.launch import Settings, needs_of
from tokenvm.errors import RequestError
from tokenvm.llm import LLM, make_settings
from tokenvm.models.fetch import resolve_model
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.outputs import CompletionOutput
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.sizes import format_size
from tokenvm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Job:
    """A text, a question about it and, where it is known, what the answer must contain."""

    text: str
    question: str
    expected: str | None = None

    @classmethod
    def needle(cls) -> Self:
        """Hide a random number in the constitution of the United States."""
        code = str(10_000 + secrets.randbelow(90_000))
        paragraphs = (
            resources.files("tokenvm").joinpath("texts/constitution.txt").read_text("utf-8").split("\n\n")
        )
        quarter = len(paragraphs) // 4
        at = quarter + secrets.randbelow(2 * quarter)
        paragraphs.insert(at, f"The secret code of the vault is {code}.")
        question = "What is the secret code of the vault? Answer with the number."
        return cls("\n\n".join(paragraphs).strip(), question, code)

    @classmethod
    def from_user(cls, file: Path | None, prompt: str | None) -> Self:
        """Take the user's own document and question; RequestError where there is nothing to do."""
        if prompt is None or not prompt.strip():
            raise RequestError(
                'there is no question: type tokenvm run --file DOC --prompt "QUESTION", or --needle'
            )
        if file is None:
            return cls("", prompt)
        try:
            return cls(file.read_text("utf-8").strip(), prompt)
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(
                f"{file} cannot be read as text ({error}): name a readable UTF-8 file"
            ) from error

    def tokens(self, tokenizer: Tokenizer) -> list[int]:
        """Return the prompt: text and question as one message of a chat, or as they are without a template."""
        prompt = f"{self.text}\n\n{self.question}".strip()
        if tokenizer.has_chat_template:
            return list(tokenizer.apply_chat_template([{"role": "user", "content": prompt}]))
        return tokenizer.encode(prompt)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: the answer with its bits, times in seconds, and what the tiers did."""

    answer: CompletionOutput
    ttft_s: float
    decode_s: float
    stats: dict[str, Any]

    @property
    def tokens_per_s(self) -> float:
        """Decoded tokens a second, the first one left out."""
        return (len(self.answer.token_ids) - 1) / self.decode_s if self.decode_s else 0.0

    @property
    def peak_bytes(self) -> int:
        """The most bytes that pages and ring held on the device."""
        return int(self.stats["tiers"]["device"]["high_water_bytes"]) + int(self.stats["ring_bytes"])


def run_job(
    job: Job,
    model: str,
    resolved: Resolved,
    *,
    kv_fraction: float,
    max_tokens: int,
    compare: bool,
    threads: int | None,
    dtype: str,
) -> dict[str, Any]:
    """Do the job with limited memory, again without limits, and print a card; return it as plain values."""
    screen = Screen()
    with screen.getting_model() as report:
        folder = resolve_model(model, progress=report)
        loaded, tokenizer = load_any_model(folder, dtype), Tokenizer.from_folder(folder)
    ids = job.tokens(tokenizer)
    settings = make_settings(resolved.config, max_num_seqs=1, threads=threads)
    needed, allowed = kv_bytes(loaded, settings, len(ids) + max_tokens, kv_fraction)
    limited = _limited(settings, allowed)
    screen.say(
        f"{len(ids):,} tokens of prompt need {format_size(needed)} of KV; allowed: {format_size(allowed)}"
    )
    params = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=1)
    first = _run("limited", loaded, tokenizer, limited, ids, params, screen)
    second = None
    if compare:
        second = _run("unlimited", loaded, tokenizer, unlimited(settings), ids, params, screen)
    return screen.card(_card(job, ids, needed, allowed, first, second))


def kv_bytes(model: LoadedModel, settings: Settings, tokens: int, fraction: float) -> tuple[int, int]:
    """Return the KV bytes that `tokens` need in whole pages, and those allowed: the limit, else the fraction."""
    needs, geometry = needs_of(model, settings)
    needed = -(-(tokens - 1) // geometry.block_tokens) * needs.page_bytes
    limit = settings.memory.kv_limit
    if limit != "auto":
        return needed, limit
    return needed, max(int(needed * fraction), minimum_kv_bytes(needs))


def _limited(settings: Settings, allowed: int) -> Settings:
    return with_memory(settings, settings.memory.model_copy(update={"kv_limit": allowed}))


def unlimited(settings: Settings) -> Settings:
    """Return the same settings without any limit, and without tiers below the device."""
    update = {"kv_limit": "auto", "vram_limit": "auto", "nvme_limit": 0, "host_memory": 0}
    return with_memory(settings, settings.memory.model_copy(update=update))


def with_memory(settings: Settings, memory: MemoryConfig) -> Settings:
    """Return the same settings with other memory limits."""
    return replace(settings, memory=memory)


def warmth(kept: dict[str, Any], folder: Path) -> str:
    """Say how warm a start was, from the stats of an engine that found pages."""
    return (
        f"warm: {kept['warm_pages']:,} pages of {kept['warm_tokens']:,} tokens were in {folder}, "
        f"found in {kept['warm_s']:.3f} s"
    )


def _run(
    title: str,
    model: LoadedModel,
    tokenizer: Tokenizer,
    settings: Settings,
    ids: list[int],
    params: SamplingParams,
    screen: Screen,
) -> Outcome:
    with LLM.from_loaded(model, tokenizer, settings) as llm, screen.answering(title, len(ids)) as live:
        if llm.stats()["kept"].get("warm_pages"):
            screen.say(warmth(llm.stats()["kept"], settings.disk_path))
        stream = llm.stream(
            {"prompt_token_ids": ids}, params, on_step=lambda result: live.step(result, llm.stats())
        )
        for chunk in stream:
            live.text(chunk.text)
        answer, times = chunk.output.outputs[0], chunk.output.metrics
        assert times is not None, "a finished output has times"
        return Outcome(answer, times.ttft_s, times.latency_s - times.ttft_s, llm.stats())


def _card(
    job: Job, ids: list[int], needed: int, allowed: int, first: Outcome, second: Outcome | None
) -> dict[str, Any]:
    """Everything a reader wants to know, as plain values."""
    card: dict[str, Any] = {
        "question": job.question,
        "answer": first.answer.text.strip(),
        "prompt_tokens": len(ids),
        "kv_needed_bytes": needed,
        "kv_allowed_bytes": allowed,
        "kv_peak_bytes": first.peak_bytes,
        "limited": _figures(first),
    }
    if job.expected is not None:
        card |= {"expected": job.expected, "found": job.expected in first.answer.text}
    if second is not None:
        card |= {"unlimited": _figures(second), "identical": _bits(first.answer) == _bits(second.answer)}
    return card


def _figures(outcome: Outcome) -> dict[str, Any]:
    tiers = outcome.stats["tiers"]
    hits = {name: tier["hits"] for name, tier in tiers.items()}
    total = sum(hits.values())
    return {
        "ttft_s": outcome.ttft_s,
        "tokens_per_s": outcome.tokens_per_s,
        "moved_bytes": outcome.stats["moved_bytes"],
        "hit_rate": {name: count / total if total else 0.0 for name, count in hits.items()},
        "overlap_ratio": outcome.stats["overlap_ratio"],
        "hidden_ratio": outcome.stats["hidden_ratio"],
    }


def _bits(answer: CompletionOutput) -> list[tuple[int, dict[int, float]]]:
    """Return tokens and log-probabilities, to be compared exactly."""
    logprobs = [{token: one.logprob for token, one in step.items()} for step in answer.logprobs or []]
    return list(zip(answer.token_ids, logprobs, strict=True))
