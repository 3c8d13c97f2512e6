"""LLM, the façade, over pages on disk: the tokens of unlimited memory, and ends that come at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from fixtures_engine import VOCAB_SIZE, kv_limit_for, page_bytes, prompt, tiny_model, used_slots

from tokenvm.config import MemoryConfig
from tokenvm.engine.launch import Settings
from tokenvm.errors import RequestError
from tokenvm.llm import LLM
from tokenvm.outputs import RequestOutput
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer

PROMPTS = [{"prompt_token_ids": list(prompt(length))} for length in (70, 33, 16)]
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One word a token: id 7 is "w07"."""
    folder = tmp_path_factory.mktemp("words")
    words = tokenizers.models.WordLevel({word(at): at for at in range(VOCAB_SIZE)}, unk_token=word(0))
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


def word(token: int) -> str:
    return f"w{token:02}"


def open_llm(tokenizer: Tokenizer, folder: Path, pages: int = 0, **numbers: int) -> LLM:
    model = tiny_model()
    memory = MemoryConfig(
        block_tokens=16,
        kv_limit=kv_limit_for(model, pages) if pages else "auto",
        nvme_limit=64 * page_bytes(model) if pages else 0,
    )
    return LLM.from_loaded(model, tokenizer, Settings(memory, folder, max_num_seqs=4, poison=True, **numbers))


def bits(outputs: list[RequestOutput]) -> list[tuple[list[int], object, str, str | None]]:
    completions = [one for output in outputs for one in output.outputs]
    return [(one.token_ids, one.logprobs, one.text, one.finish_reason) for one in completions]


def test_generate_under_a_limit_says_what_it_says_without(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with open_llm(tokenizer, tmp_path) as llm:
        roomy = bits(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    with open_llm(tokenizer, tmp_path, pages=5) as llm:
        assert bits(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == roomy
        assert llm.stats()["streamed_pages"] > 0


def test_a_seeded_request_draws_the_same_alone_and_in_a_batch(tokenizer: Tokenizer, tmp_path: Path) -> None:
    drawn = SamplingParams(temperature=1.0, seed=5, max_tokens=20, ignore_eos=True, logprobs=0)
    with open_llm(tokenizer, tmp_path) as llm:
        alone = [bits(llm.generate(one, drawn, use_tqdm=False))[0] for one in PROMPTS]
    with open_llm(tokenizer, tmp_path, pages=5, max_tokens_per_forward=20) as llm:
        assert bits(llm.generate(PROMPTS, drawn, use_tqdm=False)) == alone
        assert llm.stats()["streamed_pages"] > 0
    assert len({tuple(tokens) for tokens, *_ in alone}) == 3


def test_several_completions_have_streams_of_their_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    drawn = SamplingParams(n=3, temperature=1.0, seed=5, max_tokens=20, ignore_eos=True, logprobs=0)
    with open_llm(tokenizer, tmp_path) as llm:
        alone = [llm.generate(one, drawn, use_tqdm=False)[0] for one in PROMPTS]
        single = bits(llm.generate(PROMPTS, replace(drawn, n=1), use_tqdm=False))
        greedy = llm.generate(PROMPTS[0], replace(GREEDY, n=3), use_tqdm=False)
    with open_llm(tokenizer, tmp_path, pages=5) as llm:
        outputs = llm.generate(PROMPTS, drawn, use_tqdm=False)
        assert llm.stats()["streamed_pages"] > 0
    assert [[one.index for one in output.outputs] for output in outputs] == [[0, 1, 2]] * 3
    assert bits(outputs) == bits(alone)
    assert bits(outputs)[::3] == single
    assert len({tuple(tokens) for tokens, *_ in bits(outputs)}) == 9
    assert len({str(one) for one in bits(greedy)}) == 1


def test_one_completion_of_several_stops_and_the_others_go_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    drawn = SamplingParams(n=3, temperature=1.0, seed=5, max_tokens=20, ignore_eos=True)
    with open_llm(tokenizer, tmp_path, pages=5) as llm:
        whole = [tokens for tokens, *_ in bits(llm.generate(PROMPTS[0], drawn, use_tqdm=False))]
        stop = next(token for token in whole[1] if token not in whole[0] + whole[2])
        (output,) = llm.generate(PROMPTS[0], replace(drawn, stop=word(stop)), use_tqdm=False)
        cut = whole[1][: whole[1].index(stop) + 1]
        assert [one.token_ids for one in output.outputs] == [whole[0], cut, whole[2]]
        assert [one.finish_reason for one in output.outputs] == ["length", "stop", "length"]
        assert used_slots(llm.engine) == [0, 0, 0]


def test_a_prompt_is_told_how_likely_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    asked = replace(GREEDY, prompt_logprobs=1, n=2)
    with open_llm(tokenizer, tmp_path) as llm:
        roomy = llm.generate(PROMPTS, asked, use_tqdm=False)
    with open_llm(tokenizer, tmp_path, pages=5, max_tokens_per_forward=20) as llm:
        tight = llm.generate(PROMPTS, asked, use_tqdm=False)
        assert llm.stats()["streamed_pages"] > 0
    for output in (*roomy, *tight):
        told = output.prompt_logprobs
        assert told is not None
        assert told[0] is None
        assert len(told) == len(output.prompt_token_ids)
        for token, entry in zip(output.prompt_token_ids[1:], told[1:], strict=True):
            assert entry is not None
            assert token in entry
            assert 1 <= len(entry) <= 2
            assert entry[token].decoded_token == word(token)
    assert [output.prompt_logprobs for output in tight] == [output.prompt_logprobs for output in roomy]


def test_as_many_tokens_as_the_model_allows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    asked = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    with open_llm(tokenizer, tmp_path, max_model_len=40) as llm:
        (output,) = llm.generate(PROMPTS[1], asked, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 40 - 33


def test_min_tokens_holds_off_the_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    end = SamplingParams(temperature=0, max_tokens=20, logit_bias={2: 100})
    with open_llm(tokenizer, tmp_path) as llm:
        early, late = bits(llm.generate(PROMPTS[:2], [end, replace(end, min_tokens=7)], use_tqdm=False))
    assert (early[0], early[2], early[3]) == ([2], "", "stop")
    assert len(late[0]) == 8
    assert late[0].index(2) == 7


def test_lower_priorities_run_first(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with open_llm(tokenizer, tmp_path) as llm:
        plain = bits(llm.generate(PROMPTS * 2, GREEDY, use_tqdm=False))
        outputs = llm.generate(PROMPTS * 2, GREEDY, use_tqdm=False, priority=[5, 4, 3, 2, 1, 0])
        times = [output.metrics for output in outputs if output.metrics is not None]
        assert bits(outputs) == plain
        assert all(0 <= one.queue_s < one.ttft_s < one.latency_s for one in times)
        assert max(one.queue_s for one in times[2:]) < min(one.queue_s for one in times[:2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"priority": [1, 2]}, "3 prompts and 2 priorities: give one, or one for each"),
        ({"cache_salt": ["a"]}, "3 prompts and 1 cache salts: give one, or one for each"),
        ({"params": [GREEDY]}, "3 prompts and 1 SamplingParams: give one, or one for each"),
        ({"sampling_params": [GREEDY]}, "3 prompts and 1 SamplingParams: give one, or one for each"),
        ({"params": GREEDY, "sampling_params": GREEDY}, "give one of them"),
        ({"priority": "high"}, "priority='high' is not possible"),
        ({"priority": 1.5}, "priority=1.5 is not possible"),
        ({"cache_salt": 7}, "cache_salt=7 is not possible"),
        ({"params": SamplingParams(logit_bias={97: 1})}, "logit_bias names token 97"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_refuse_all(
    given: dict[str, Any], said: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with open_llm(tokenizer, tmp_path) as llm:
        with pytest.raises(RequestError, match=said):
            llm.generate(PROMPTS, use_tqdm=False, **given)
        assert not llm.engine.has_work
        mine = llm.generate(PROMPTS, GREEDY, use_tqdm=False, priority=1, cache_salt="mine")
        assert bits(mine) == bits(llm.generate(PROMPTS, sampling_params=GREEDY, use_tqdm=False))


def test_a_stop_string_that_ends_in_the_last_token_allowed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Two reasons to end in one step; the stop string is the one that is told."""
    with open_llm(tokenizer, tmp_path) as llm:
        (tokens, *_), *_ = bits(llm.generate(PROMPTS[0], GREEDY, use_tqdm=False))
        fresh = [at for at, token in enumerate(tokens) if token not in tokens[:at]]
        for last in (fresh[0], fresh[3], fresh[-1]):
            stop = SamplingParams(
                temperature=0, max_tokens=last + 1, ignore_eos=True, stop=word(tokens[last])
            )
            (output,) = llm.generate(PROMPTS[0], stop, use_tqdm=False)
            assert output.outputs[0].token_ids == tokens[: last + 1]
            assert output.outputs[0].finish_reason == "stop"
            assert output.outputs[0].stop_reason == word(tokens[last])
            assert output.outputs[0].text.split() == [word(token) for token in tokens[:last]]
            assert not llm.engine.has_work


def test_a_stop_string_frees_the_pages_while_others_go_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with open_llm(tokenizer, tmp_path, pages=5) as llm:
        whole = bits(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
        stop = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop=word(whole[0][0][4]))
        first, *others = bits(llm.generate(PROMPTS, [stop, GREEDY, GREEDY], use_tqdm=False))
        assert first[0] == whole[0][0][: whole[0][0].index(whole[0][0][4]) + 1]
        assert first[3] == "stop"
        assert others == whole[1:]
        assert used_slots(llm.engine) == [0, 0, 0]


def test_a_stream_left_early_frees_its_pages(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with open_llm(tokenizer, tmp_path, pages=4) as llm:
        whole = bits(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
        stream = llm.stream(PROMPTS[0], GREEDY)
        assert next(stream).token_id == whole[0][0][0]
        stream.close()
        assert not llm.engine.has_work
        assert bits(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == whole


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        None,
        {},
        {"prompt": 5},
        {"prompt_token_ids": 5},
        {"prompt_token_ids": ["w1"]},
        {"prompt_token_ids": [1.0]},
    ],
    ids=str,
)
def test_one_wrong_prompt_refuses_all_and_the_next_call_works(
    wrong: object, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with open_llm(tokenizer, tmp_path) as llm:
        with pytest.raises(RequestError):
            llm.generate([*PROMPTS, wrong], GREEDY, use_tqdm=False)
        assert not llm.engine.has_work
        assert len(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == 3
        assert llm.generate([], GREEDY, use_tqdm=False) == []


def test_an_interrupt_while_a_request_is_taken_leaves_none_behind(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_llm(tokenizer, tmp_path) as llm:
        announce, calls = llm.engine.kvcache.announce, iter(range(9))

        def interrupted(*given: object) -> None:
            if next(calls) == 1:
                raise KeyboardInterrupt
            announce(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(llm.engine.kvcache, "announce", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        assert not any(llm.stats()["requests"].values())
        monkeypatch.setattr(llm.engine.kvcache, "announce", announce)
        assert len(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == len(PROMPTS)


def test_a_salt_that_is_no_text_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with open_llm(tokenizer, tmp_path) as llm:
        for salt in ("\ud800", 7):
            with pytest.raises(RequestError, match="cache_salt"):
                llm.generate({**PROMPTS[0], "cache_salt": salt}, GREEDY, use_tqdm=False)


def test_only_requests_of_one_salt_share_pages(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with open_llm(tokenizer, tmp_path) as llm:

        def found(prompt: dict[str, Any], **given: str) -> int:
            (output,) = llm.generate(prompt, GREEDY, use_tqdm=False, **given)
            return output.num_cached_tokens or 0

        assert found(PROMPTS[0]) == 0
        assert found(PROMPTS[0]) == 64
        assert found(PROMPTS[0], cache_salt="mine") == 0
        assert found({**PROMPTS[0], "cache_salt": "mine"}) == 64
        assert found({**PROMPTS[0], "cache_salt": "theirs"}, cache_salt="mine") == 0
