"""AsyncLLM says what LLM says, to the bit, whoever else asks; and requests end when nobody listens any more."""

import asyncio
import itertools
import threading
from itertools import chain
from threading import get_ident
from typing import Any

import pytest
from fixtures_async import Run, greedy, last, prompt, said

from tokenvm import LLM, AsyncLLM, RequestError, RequestOutput, SamplingParams

MANY, LONG = 24, 4000


async def idle(llm: AsyncLLM) -> None:
    """Wait until the engine has nothing to do."""
    while any((await llm.stats())["requests"].values()):
        await asyncio.sleep(0.01)


def test_many_at_once_say_what_each_says_alone(run: Run, engine: AsyncLLM, twin: LLM) -> None:
    prompts = [prompt(5 + 17 * at % 90, seed=at) for at in range(MANY)]
    params = [
        greedy(4 + at % 9, logprobs=2)
        if at % 2
        else SamplingParams(temperature=0.9, top_p=0.9, seed=at, max_tokens=10, ignore_eos=True)
        for at in range(MANY)
    ]

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(last(engine, *each) for each in zip(prompts, params, strict=True)))

    alone = [said(*twin.generate(*each, use_tqdm=False)) for each in zip(prompts, params, strict=True)]
    assert [said(output) for output in run(all_of_them())] == alone


def test_a_text_is_completed_with_times_and_its_id(run: Run, engine: AsyncLLM, twin: LLM) -> None:
    output = run(last(engine, "hello world", greedy(), request_id="mine"))
    assert said(output) == said(*twin.generate("hello world", greedy(), use_tqdm=False))
    assert (output.request_id, output.prompt) == ("mine", "hello world")
    assert output.metrics is not None
    assert 0 < output.metrics.ttft_s <= output.metrics.latency_s


@pytest.mark.parametrize("delta", [False, True])
def test_who_reads_slowly_hears_the_end(run: Run, engine: AsyncLLM, twin: LLM, delta: bool) -> None:
    async def slowly() -> list[Any]:
        outputs = []
        async for output in engine.generate(prompt(9), greedy(12), delta=delta):
            outputs.append(output)
            await idle(engine)
        return outputs

    outputs = run(slowly())
    (wanted,) = twin.generate(prompt(9), greedy(12), use_tqdm=False)
    tokens = [one.outputs[0].token_ids for one in outputs]
    assert (list(chain(*tokens)) if delta else tokens[-1]) == wanted.outputs[0].token_ids
    assert outputs[-1].finished
    assert outputs[-1].outputs[0].finish_reason == "length"


def test_a_long_text_is_read_on_another_thread(
    run: Run, engine: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, threads = engine.get_tokenizer(), []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: (threads.append(get_ident()), encode(text))[1])
    run(last(engine, "hello", greedy(1)))
    with pytest.raises(RequestError, match="shorten it"):
        run(last(engine, "hello world " * 2000))
    assert threads[0] == get_ident() != threads[1]


def test_outputs_grow_and_deltas_are_their_differences(run: Run, engine: AsyncLLM) -> None:
    params = greedy(30, logprobs=1)

    async def both() -> tuple[list[Any], list[Any]]:
        grown = [output async for output in engine.generate(prompt(9), params)]
        deltas = [output async for output in engine.generate(prompt(9), params, delta=True)]
        return [one.outputs[0] for one in grown], [one.outputs[0] for one in deltas]

    grown, deltas = run(both())
    for before, after in itertools.pairwise(grown):
        assert after.text.startswith(before.text)
        assert after.token_ids[: len(before.token_ids)] == before.token_ids
    whole = grown[-1]
    assert "".join(one.text for one in deltas) == whole.text
    assert [token for one in deltas for token in one.token_ids] == whole.token_ids
    assert [best for one in deltas for best in one.logprobs] == whole.logprobs
    assert deltas[-1].finish_reason == whole.finish_reason == "length"


def test_a_stop_string_ends_the_text_and_the_sequence(run: Run, engine: AsyncLLM, twin: LLM) -> None:
    (whole,) = twin.generate(prompt(9), greedy(40), use_tqdm=False)
    text = whole.outputs[0].text
    stop = text[len(text) // 2 :][:3]
    params = greedy(400, stop=[stop])

    async def shown() -> list[str]:
        return [output.outputs[0].text async for output in engine.generate(prompt(9), params)]

    texts = run(shown())
    assert texts[-1] == text[: text.index(stop)]
    assert all(texts[-1].startswith(one) for one in texts)
    assert said(run(last(engine, prompt(9), params))) == said(
        *twin.generate(prompt(9), params, use_tqdm=False)
    )
    run(idle(engine))


def test_abort_ends_a_request_with_what_it_has(run: Run, engine: AsyncLLM, twin: LLM) -> None:
    async def cut() -> Any:
        async for output in engine.generate(prompt(9), greedy(LONG), "cut"):
            if len(output.outputs[0].token_ids) >= 5:
                await engine.abort("cut")
        return output

    output = run(cut())
    (whole,) = twin.generate(prompt(9), greedy(400), use_tqdm=False)
    tokens = output.outputs[0].token_ids
    assert output.outputs[0].finish_reason == "abort"
    assert 5 <= len(tokens) < LONG
    assert tokens[:400] == whole.outputs[0].token_ids[: len(tokens)]
    run(engine.abort("nobody"))
    run(idle(engine))


@pytest.mark.parametrize("way", ["cancel", "close", "waiting"])
def test_a_request_nobody_reads_is_ended_and_its_pages_freed(run: Run, engine: AsyncLLM, way: str) -> None:
    async def leave() -> None:
        running = engine.generate(prompt(40), greedy(LONG), "left")
        if way != "waiting":
            await anext(running)
        if way == "close":
            await running.aclose()
            return
        task = asyncio.create_task(anext(running))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    steps = run(engine.stats())["steps"]
    run(leave())
    run(idle(engine))
    assert run(engine.stats())["steps"] < steps + LONG // 2
    assert run(last(engine, prompt(3), greedy(2), request_id="left")).finished, "the id is free again"


@pytest.mark.parametrize(
    "wrong",
    [
        ({"prompt_token_ids": []}, None, "empty"),
        ({"prompt_token_ids": [10**6]}, None, "not in the vocabulary"),
        ({"prompt_token_ids": [2**70]}, None, "64 bits"),
        ({"prompt_token_ids": "abc"}, None, "whole numbers"),
        (5, None, "a text or"),
        (prompt(4096), None, "shorten it"),
        (prompt(3), SamplingParams(max_tokens=10**30), "64 bits"),
        ("\ud800", None, "not valid text"),
    ],
    ids=lambda wrong: wrong[2],
)
def test_a_bad_request_is_refused_and_the_engine_goes_on(run: Run, engine: AsyncLLM, wrong: Any) -> None:
    given, params, words = wrong
    with pytest.raises(RequestError, match=words):
        run(last(engine, given, params))
    assert len(run(last(engine, prompt(3), greedy(2))).outputs[0].token_ids) == 2


def test_one_id_at_a_time(run: Run, engine: AsyncLLM) -> None:
    async def twice() -> None:
        running = engine.generate(prompt(5), greedy(LONG), "same")
        await anext(running)
        with pytest.raises(RequestError, match="'same' has not finished"):
            await last(engine, prompt(5), greedy(2), request_id="same")
        await running.aclose()

    run(twice())


def test_several_answers_and_a_scored_prompt_are_those_of_llm(run: Run, engine: AsyncLLM, twin: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=4, n=3, max_tokens=9, prompt_logprobs=2, ignore_eos=True)
    got = run(last(engine, prompt(40), params))
    (wanted,) = twin.generate(prompt(40), params, use_tqdm=False)
    assert [one.token_ids for one in got.outputs] == [one.token_ids for one in wanted.outputs]
    assert [one.text for one in got.outputs] == [one.text for one in wanted.outputs]
    assert got.prompt_logprobs == wanted.prompt_logprobs
    assert len(got.prompt_logprobs) == 40


def test_only_requests_of_one_salt_share_pages(run: Run, engine: AsyncLLM) -> None:
    asked = prompt(70, seed=11)

    def found(given: Any, **more: Any) -> Any:
        return run(last(engine, given, greedy(2), **more)).metrics.cached_tokens

    assert [found(asked), found(asked, cache_salt="mine")] == [0, 0]
    assert found(asked) > 0
    assert found({**asked, "cache_salt": "mine"}) > 0
    assert found({**asked, "cache_salt": "theirs"}, cache_salt="mine") == 0


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_a_prompt_that_was_read_before_is_found(run: Run, engine: AsyncLLM, max_tokens: int) -> None:
    """Also where the step that a request begins with is its last."""
    asked = prompt(70, seed=9 + max_tokens)
    run(last(engine, asked, greedy(2)))
    again = run(last(engine, asked, greedy(max_tokens), priority=3))
    assert again.metrics.cached_tokens >= 16
    assert again.metrics.queue_s < again.metrics.ttft_s


def test_who_wants_the_end_alone_gets_the_same(run: Run, engine: AsyncLLM) -> None:
    params = SamplingParams(seed=3, n=2, max_tokens=12, logprobs=1, ignore_eos=True)
    whole = run(engine.complete(prompt(9), params))
    outputs = run(last(engine, prompt(9), params)).outputs
    assert whole.outputs == outputs
    assert whole.finished
    with pytest.raises(RequestError, match="empty"):
        run(engine.complete({"prompt_token_ids": []}))


def test_a_seed_beyond_64_bits_draws_what_it_draws_in_one_process(
    run: Run, engine: AsyncLLM, twin: LLM
) -> None:
    params = SamplingParams(seed=-(2**70) - 5, max_tokens=8, ignore_eos=True)
    assert said(run(last(engine, prompt(5), params))) == said(
        *twin.generate(prompt(5), params, use_tqdm=False)
    )


def test_hundreds_wait_and_all_are_answered(run: Run, engine: AsyncLLM, twin: LLM) -> None:
    params = greedy(1)

    async def crowd() -> list[Any]:
        return await asyncio.gather(
            *(last(engine, prompt(4 + at % 7, seed=at % 5), params) for at in range(500))
        )

    outputs = run(crowd())
    kinds = {(at % 7, at % 5): outputs[at] for at in range(500)}
    for (extra, seed), output in kinds.items():
        assert said(output) == said(*twin.generate(prompt(4 + extra, seed=seed), params, use_tqdm=False))
    assert len({output.request_id for output in outputs}) == 500
    run(idle(engine))


def test_stats_and_health_are_told_while_it_works(run: Run, engine: AsyncLLM) -> None:
    async def asked() -> dict[str, Any]:
        running = engine.generate(prompt(30), greedy(LONG))
        await anext(running)
        await engine.check_health()
        stats = await engine.stats()
        await running.aclose()
        return stats

    assert run(asked())["tiers"]["device"]["used_bytes"] > 0
    assert engine.plan["max_model_len"] == 4096
    assert engine.alive
    assert engine.get_tokenizer().encode("hello")


@pytest.mark.parametrize("samples", [1, 3])
def test_a_request_is_aborted_while_its_prompt_is_read(
    run: Run, engine: AsyncLLM, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    tokenizer, begun, go_on = engine.get_tokenizer(), threading.Event(), threading.Event()
    encode = tokenizer.encode

    def slowly(text: str) -> list[int]:
        begun.set()
        assert go_on.wait(30)
        return encode("hello world")

    async def aborted() -> RequestOutput:
        asked = asyncio.create_task(last(engine, "x" * 30_000, greedy(5, n=samples), request_id="early"))
        await asyncio.to_thread(begun.wait, 30)
        with pytest.raises(RequestError, match="has not finished"):
            await last(engine, prompt(3), request_id="early")
        await engine.abort("early")
        go_on.set()
        return await asked

    monkeypatch.setattr(tokenizer, "encode", slowly)
    output = run(aborted())
    assert [one.finish_reason for one in output.outputs] == ["abort"] * samples
    assert [one.token_ids for one in output.outputs] == [[]] * samples
    monkeypatch.setattr(tokenizer, "encode", encode)
    assert run(last(engine, prompt(3), greedy(2), request_id="early")).finished
