"""LLM: the offline interface. A script written for vLLM's moves over by changing an import."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tokenvm.borrowed.load import load_any_model
from tokenvm.clock import RealClock
from tokenvm.collect import Collector
from tokenvm.config import MemoryConfig, config_path, read_config_file, resolve
from tokenvm.engine.engine import Engine, StepResult
from tokenvm.engine.launch import Settings, build_engine
from tokenvm.engine.startup import StartupPlan
from tokenvm.errors import RequestError, TokenVMError
from tokenvm.models.fetch import default_cache_dir, resolve_model
from tokenvm.models.progress import Report, silent
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.outputs import RequestOutput, StreamChunk
from tokenvm.prompts import Prompt, read_prompt, ready, salt_of
from tokenvm.schedule.plan import FinishedEvent
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer
from tokenvm.vocab import SeqId

Message = Mapping[str, Any]
OnStep = Callable[[StepResult], None]


class LLM:
    """A model, its memory and its engine. One thread uses it; close it, or use it in a `with` block.

    `model` is a built-in name ("smollm2"), a Hugging Face folder or a `.gguf` file. `memory` overrides the environment,
    the configuration file and the defaults. `dtype` is "auto" (bfloat16), "bfloat16" or "float32". `threads` bounds the
    compute threads. With `enable_prefix_caching`, requests that begin alike share the pages of what they begin with.
    With `warm_up`, all memory is taken now, so that no request can run out of it later.

    Raises ModelError, ConfigError, LimitTooSmall or StorageError; each message says what to type.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        memory: MemoryConfig | None = None,
        dtype: str = "auto",
        tokenizer: str | Path | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_tokens_per_forward: int | None = None,
        seed: int = 0,
        threads: int | None = None,
        enable_prefix_caching: bool = True,
        progress: Report = silent,
        warm_up: bool = False,
    ) -> None:
        folder = resolve_model(str(model), progress=progress)
        loaded = load_any_model(folder, dtype)
        spoken = Tokenizer.from_folder(folder if tokenizer is None else Path(tokenizer))
        settings = make_settings(
            memory,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_tokens_per_forward=max_tokens_per_forward,
            seed=seed,
            threads=threads,
            enable_prefix_caching=enable_prefix_caching,
            warm_up=warm_up,
        )
        self._start(loaded, spoken, settings)

    @classmethod
    def from_loaded(cls, model: LoadedModel, tokenizer: Tokenizer, settings: Settings) -> Self:
        """Make another LLM around weights that are already in memory; they are shared."""
        llm = cls.__new__(cls)
        llm._start(model, tokenizer, settings)
        return llm

    def _start(self, model: LoadedModel, tokenizer: Tokenizer, settings: Settings) -> None:
        self.model = model
        self.engine: Engine = build_engine(model, settings, tokenizer=lambda: tokenizer)
        self._tokenizer = tokenizer
        self._clock = RealClock()
        self._requests = 0
        self._live: dict[SeqId, Collector] = {}  # of every sequence of a request that has not finished
        self._failures: dict[str, TokenVMError] = {}  # of requests that a failing tier ended

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        priority: int | Sequence[int] | None = None,
        cache_salt: str | Sequence[str] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts, each a text or {"prompt_token_ids": [...]}; outputs come in the order of the prompts.

        A lower `priority` runs first. Only requests with the same `cache_salt` share pages; one in a prompt, as
        {"prompt": ..., "cache_salt": ...}, counts before it. Of `params` and these, give one or one for each prompt.
        `sampling_params` is vLLM's name for `params`.

        Raises:
            RequestError: a prompt or a parameter is not possible; then none has run. StorageError: a tier fails, and
                what is left of memory does not hold a request; all of them have ended then.
        """
        listed = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        fields = zip(
            listed,
            _for_each("SamplingParams", _either(params, sampling_params), listed, SamplingParams()),
            _for_each("priorities", priority, listed, 0),
            _for_each("cache salts", cache_salt, listed, ""),
            strict=True,
        )
        collectors = self._add_all([self._request(*one) for one in fields])
        with _bar(len(collectors), use_tqdm) as advance:
            self._drive(collectors, advance)
        return [collector.output for collector in collectors]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of several, through the model's chat template."""
        talks: list[Any] = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        prompts: list[Prompt] = [
            {"prompt_token_ids": self._tokenizer.apply_chat_template(talk)} for talk in talks
        ]
        return self.generate(prompts, params, sampling_params=sampling_params, use_tqdm=use_tqdm)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, on_step: OnStep | None = None
    ) -> Iterator[StreamChunk]:
        """Complete one prompt, yielding text as it comes; ending the iteration early frees everything.

        `on_step` hears of every step, also of those that only read the prompt.
        """
        asked = self._request(prompt, params or SamplingParams(), streams=True)
        (collector,) = self._add_all([asked])
        try:
            while not collector.output.finished:
                result = self._step()
                self._raise_failure([collector])
                if on_step is not None:
                    on_step(result)
                yield from collector.drain()
            self._raise_failure([collector])
            yield from collector.drain()  # what came while somebody else was stepping
        finally:
            if not collector.output.finished:
                self._abort([collector])

    def get_tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return self._tokenizer

    @property
    def plan(self) -> StartupPlan:
        """What its memory is used for, and how many sequences fit."""
        return self.engine.plan

    def stats(self) -> dict[str, Any]:
        """Return tiers, moves, streamed pages, overlap and hidden ratios, prefixes and requests as plain values."""
        return self.engine.stats()

    def close(self) -> None:
        """Stop all copies and free every tier; what lay on disk is gone, unless `nvme_path` was named. Idempotent."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(
        self, prompt: Prompt, params: SamplingParams, priority: int = 0, salt: str = "", streams: bool = False
    ) -> tuple[Request, Collector]:
        ids, text = read_prompt(prompt, self._tokenizer)
        salt = salt_of(prompt, salt)
        name = f"request-{self._requests}"
        self._requests += 1
        params = ready(params, self._tokenizer)
        request = Request(name, ids, params, self._clock.now_s(), priority, cache_salt=salt)
        ends = self.model.spec.eos_token_ids
        return request, Collector(request, text, self._tokenizer, ends, streams=streams)

    def _add_all(self, requests: Sequence[tuple[Request, Collector]]) -> list[Collector]:
        """Queue all requests, or none of them."""
        added: list[Collector] = []
        try:
            for request, collector in requests:
                added.append(collector)
                collector.name(self.engine.add(request))
                self._live |= dict.fromkeys(collector.seqs, collector)
        except BaseException:
            self._abort(added)
            raise
        return added

    def _drive(self, collectors: Sequence[Collector], advance: Callable[[int], None]) -> None:
        """Step until every collector has finished; on Ctrl-C or an error all of them are aborted."""
        try:
            done = 0
            while done < len(collectors):
                self._step()
                self._raise_failure(collectors)
                done = sum(collector.output.finished for collector in collectors)
                advance(done)
        except BaseException:
            self._abort(collectors)
            raise

    def _step(self) -> StepResult:
        """Step for everybody who waits: streams and batches may be driven in turn."""
        result = self.engine.step()
        self._failures |= result.failures
        now_s = self._clock.now_s()
        for seq, cached_tokens in result.begins.items():
            self._live[seq].begin(seq, cached_tokens, result.began_s)
        for seq, scores in result.scores.items():
            self._live[seq].score(scores)
        ended = {event.seq for event in result.events if isinstance(event, FinishedEvent)}
        for event in result.events:
            if self._live[event.seq].hear(event, result.choices, now_s) and event.seq not in ended:
                self.engine.stop(event.seq)
                ended.add(event.seq)
        for seq in ended:
            self._live.pop(seq, None)
        return result

    def _raise_failure(self, collectors: Sequence[Collector]) -> None:
        """Raise what ended one of these requests; whoever steps for somebody else leaves it to them."""
        for collector in collectors:
            if collector.output.request_id in self._failures:
                raise self._failures.pop(collector.output.request_id)

    def _abort(self, collectors: Sequence[Collector]) -> None:
        for collector in collectors:
            self._failures.pop(collector.output.request_id, None)
            for seq in collector.seqs:
                self._live.pop(seq, None)
            self.engine.abort(collector.output.request_id)


def make_settings(memory: MemoryConfig | None = None, **numbers: Any) -> Settings:
    """Combine `memory` with environment, configuration file and defaults; see `Settings` for the numbers."""
    arguments = {} if memory is None else memory.chosen()
    config = resolve(arguments, os.environ, read_config_file(config_path(os.environ))).config
    path = config.nvme_path
    folder = default_cache_dir(os.environ) / "kv" if path == "auto" else Path(path)
    return Settings(config, folder, keep_pages=path != "auto", **numbers)


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """Lend what shows how many of `total` requests have finished: a bar on a terminal, else nothing."""
    if not wanted or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Generating", total=total)
        yield lambda done: progress.update(task, completed=done)


def _either(params: Any, sampling_params: Any) -> Any:
    if params is not None and sampling_params is not None:
        raise RequestError("params and sampling_params are the same: give one of them")
    return sampling_params if params is None else params


def _for_each(name: str, given: Any, prompts: Sequence[Prompt], default: Any) -> list[Any]:
    """Return one value for each prompt: the default, the only one given, or those given."""
    if given is None or isinstance(given, str) or not isinstance(given, Sequence):
        return [default if given is None else given] * len(prompts)
    if len(given) != len(prompts):
        raise RequestError(f"{len(prompts)} prompts and {len(given)} {name}: give one, or one for each")
    return list(given)
