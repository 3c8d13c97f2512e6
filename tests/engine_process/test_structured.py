"""Structured answers are the same in this process, in another one, alone, beside others and where everything spills."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fixtures_async import ARGUMENTS, Run, last, prompt, said

from tokenvm import LLM, AsyncLLM, MemoryConfig, RequestError, SamplingParams, StructuredOutputsParams

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
WANTED = [
    StructuredOutputsParams(json=SCHEMA),
    StructuredOutputsParams(regex="[a-f]{2,9}"),
    StructuredOutputsParams(choice=["left", "right"]),
]
CHECKS: list[Callable[[str], Any]] = [
    lambda text: jsonschema.validate(json.loads(text), SCHEMA),
    lambda text: re.fullmatch("[a-f]{2,9}", text) or pytest.fail(text),
    lambda text: ["left", "right"].index(text),
]


def asked(**more: Any) -> list[SamplingParams]:
    return [SamplingParams(max_tokens=40, seed=5, structured_outputs=one, **more) for one in WANTED]


def test_another_process_gives_the_same_structured_answers(run: Run, engine: AsyncLLM, twin: LLM) -> None:
    prompts = [prompt(20 + at, at) for at in range(3)]
    here = twin.generate([*prompts, prompt(30)], [*asked(), SamplingParams(seed=1)], use_tqdm=False)
    for at, params in enumerate(asked()):
        there = run(last(engine, prompts[at], params))
        assert said(there) == said(here[at])
        assert there.outputs[0].finish_reason == "stop"
        CHECKS[at](there.outputs[0].text)


def test_several_answers_to_one_prompt_each_follow_the_grammar(twin: LLM) -> None:
    (output,) = twin.generate(prompt(25), asked(n=3)[1], use_tqdm=False)
    texts = [one.text for one in output.outputs]
    for text in texts:
        CHECKS[1](text)
    assert len(set(texts)) > 1


def test_pauses_and_streaming_do_not_change_structured_answers(
    model_folder: Path, twin: LLM, tmp_path: Path
) -> None:
    prompts = [prompt(60 + at, at) for at in range(6)]
    params = [one for one in asked() for _ in range(2)]
    alone = [
        twin.generate(one, like, use_tqdm=False)[0].outputs[0].token_ids
        for one, like in zip(prompts, params, strict=True)
    ]
    tight = MemoryConfig(
        block_tokens=16, kv_limit="96KB", host_memory=0, nvme_path=str(tmp_path), nvme_limit="32MB"
    )
    with LLM(model_folder, **(ARGUMENTS | {"memory": tight})) as llm:
        together = llm.generate(prompts, params, use_tqdm=False)
        stats = llm.stats()
    assert [one.outputs[0].token_ids for one in together] == alone
    assert stats["moved_bytes"]["nvme_write"] > 0


def test_a_bad_grammar_never_reaches_the_engine(run: Run, engine: AsyncLLM, twin: LLM) -> None:
    bad = SamplingParams(structured_outputs={"regex": "(a"})
    with pytest.raises(RequestError, match=r"structured_outputs\.regex"):
        twin.generate([prompt(5), prompt(6)], [SamplingParams(), bad], use_tqdm=False)
    with pytest.raises(RequestError, match=r"structured_outputs\.regex"):
        run(last(engine, prompt(5), bad))
    assert twin.stats()["requests"] == {"running": 0, "waiting": 0, "paused": 0}


def test_bad_words_are_given_as_text(run: Run, engine: AsyncLLM, twin: LLM) -> None:
    tokens = [twin.get_tokenizer().encode(letter)[0] for letter in "hx"]
    for word, left in (("h", "x"), ("x", "h")):
        params = SamplingParams(max_tokens=6, seed=3, allowed_token_ids=tokens, bad_words=[word])
        here = twin.generate(prompt(9), params, use_tqdm=False)[0].outputs[0]
        assert here.text == left * 6
        assert run(last(engine, prompt(9), params)).outputs[0].token_ids == here.token_ids
