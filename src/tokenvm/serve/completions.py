"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenvm.outputs import CompletionOutput, RequestOutput
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.serve.answers import Answer, News, events
from tokenvm.serve.asking import asked_of, cut_to_last, ids_of_text, params_of
from tokenvm.serve.documented import DOCUMENTED
from tokenvm.serve.generation import Asked, complete
from tokenvm.serve.logprobs import completion_logprobs, prompt_logprobs
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.schema_text import CompletionBody
from tokenvm.serve.state import ServeState, state_of
from tokenvm.serve.usage import Usage
from tokenvm.serve.wire import EventStream, Json, while_connected

USUAL_MAX_TOKENS = 16
KIND = "text_completion"


def router() -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.post("/v1/completions", summary="Go on from prompts", responses={**DOCUMENTED})
    async def create_completion(body: CompletionBody, request: Request) -> Response:
        state = state_of(request)
        asked = await ask(body, state)
        answer = Answer.to(request, body, "cmpl")
        if body.stream:
            choices = CompletionChoices(body, answer, state, asked)
            return EventStream(
                events(state, body, asked, answer.head(KIND), choices), state.settings.request_timeout_s
            )
        outputs = await while_connected(request.receive, complete(state, asked))
        return Json(told(body, outputs, answer, state))

    return routes


async def ask(body: CompletionBody, state: ServeState) -> list[Asked]:
    """Return what the engine is asked for each prompt. Raises Refusal or RequestError."""
    state.refuse_model(body.model)
    params = _params(body, state)
    prompts = _prompts(body)
    if len(prompts) > state.settings.max_prompts:
        text = f"{len(prompts)} prompts are more than {state.settings.max_prompts}: send them in several requests"
        raise Refusal(text, param="prompt")
    tokenizer = state.keeper.llm.get_tokenizer()
    all_ids = [
        await ids_of_text(tokenizer, prompt, body.add_special_tokens) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    return [asked_of(body, cut_to_last(ids, body, state), params) for ids in all_ids]


def told(
    body: CompletionBody, outputs: Sequence[RequestOutput], answer: Answer, state: ServeState
) -> dict[str, Any]:
    """Return the whole answer."""
    if body.max_tokens == 0:
        outputs = [replace(output, outputs=[*map(_emptied, output.outputs)]) for output in outputs]
    usage = Usage.of(outputs).as_dict()
    choices: list[dict[str, Any]] = []
    for output in outputs:
        kept = _best(output.outputs, body.n or 1)
        echo = _Echo(body, output, answer, state)
        choices += [_choice(body, one, answer, echo, len(choices) + at) for at, one in enumerate(kept)]
    return {**answer.head(KIND), "choices": choices, "usage": usage}


class CompletionChoices:
    """The choices of a stream's chunks; where the prompt is echoed, it comes first."""

    def __init__(
        self, body: CompletionBody, answer: Answer, state: ServeState, asked: Sequence[Asked]
    ) -> None:
        self._body = body
        self._answer = answer
        self._state = state
        self._n = asked[0].params.n
        self._news = News(body.logprobs is not None or bool(body.return_token_ids))
        self._begun: set[int] = set()
        self._lengths: dict[int, int] = {}  # place → characters of its tokens that were told

    def __call__(self, index: int, output: RequestOutput) -> list[dict[str, Any]]:
        """Return the choices that tell what is new of the `index`-th prompt."""
        if self._body.max_tokens == 0:
            output = replace(output, outputs=[*map(_emptied, output.outputs)])
        places = [(index * self._n + one.index, one) for one in output.outputs]
        told = [(place, one) for place, one in places if self._news.tells(place, one)]
        return [self._told(place, one, output) for place, one in told]

    def _told(self, place: int, one: CompletionOutput, output: RequestOutput) -> dict[str, Any]:
        first = place not in self._begun
        self._begun.add(place)
        echo = _Echo(self._body, output, self._answer, self._state, silent=not first)
        begin = self._lengths.get(place, 0)
        choice = _choice(self._body, one, self._answer, echo, place, begin)
        scores = choice["logprobs"]
        if scores is not None:  # offsets count the texts of tokens, whether or not they are characters yet
            self._lengths[place] = begin + sum(map(len, scores["tokens"]))
        return choice


class _Echo:
    """What a choice says of its prompt: nothing, unless asked to or if `silent`."""

    def __init__(
        self,
        body: CompletionBody,
        output: RequestOutput,
        answer: Answer,
        state: ServeState,
        silent: bool = False,
    ) -> None:
        echoes = bool(body.echo) and not silent
        self.tokens = output.prompt_token_ids if echoes else []
        self.text = ""
        if echoes:
            tokenizer = state.keeper.llm.get_tokenizer()
            whole = isinstance(body.prompt, str) and body.truncate_prompt_tokens is None
            self.text = str(body.prompt) if whole else tokenizer.decode(self.tokens, False)
        self.best = (output.prompt_logprobs or []) if echoes else []
        self.scores = None if silent or body.prompt_logprobs is None else output.prompt_logprobs
        self.ids = None if silent or not body.return_token_ids else output.prompt_token_ids


def _choice(
    body: CompletionBody, one: CompletionOutput, answer: Answer, echo: _Echo, place: int, begin: int = 0
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": place,
        "text": echo.text + one.text,
        "logprobs": None,
        "finish_reason": one.finish_reason,
        "stop_reason": one.stop_reason,
    }
    if body.logprobs is not None and one.logprobs is not None:
        tokens, best = [*echo.tokens, *one.token_ids], [*echo.best, *one.logprobs]
        choice["logprobs"] = completion_logprobs(tokens, best, body.logprobs, begin, answer.token_name)
    if body.return_token_ids:
        choice["token_ids"] = one.token_ids
        choice["prompt_token_ids"] = echo.ids
    if echo.scores is not None:
        choice["prompt_logprobs"] = prompt_logprobs(echo.scores)
    return choice


def _emptied(one: CompletionOutput) -> CompletionOutput:
    """Return a completion of no tokens: the engine makes at least one, which nobody asked for."""
    logprobs = None if one.logprobs is None else one.logprobs[:0]
    return replace(one, text="", token_ids=[], logprobs=logprobs)


def _best(outputs: Sequence[CompletionOutput], n: int) -> Sequence[CompletionOutput]:
    """Return the `n` completions that are likeliest per token, the likeliest first; all of them in their order."""
    if n == len(outputs):
        return outputs
    return sorted(outputs, key=_likelihood, reverse=True)[:n]


def _likelihood(one: CompletionOutput) -> float:
    return (one.cumulative_logprob or 0.0) / max(len(one.token_ids), 1)


def _params(body: CompletionBody, state: ServeState) -> SamplingParams:
    n, made = body.n or 1, body.best_of or body.n or 1
    if made < n or (made > n and body.stream):
        text = f"best_of={made} does not go with n={n}{' in a stream' if body.stream else ''}: leave it out"
        raise Refusal(text, param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise Refusal("max_tokens=0 asks for nothing: send echo=true too, or 1 or more", param="max_tokens")
    logprobs = body.logprobs if made == n or body.logprobs is not None else 0
    more: dict[str, Any] = {"n": made, "logprobs": logprobs}
    more["max_tokens"] = USUAL_MAX_TOKENS if body.max_tokens is None else max(body.max_tokens, 1)
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        more["prompt_logprobs"] = body.logprobs
    return params_of(body, state, **more)


def _prompts(body: CompletionBody) -> Sequence[str | list[int]]:
    """Return the prompts one by one."""
    prompt: Any = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise Refusal("the prompt is empty: send a text or token ids", param="prompt")
    return [prompt] if isinstance(prompt[0], int) else list(prompt)
