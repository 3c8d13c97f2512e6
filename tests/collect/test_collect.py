"""Outputs from events: against decoding everything each time, with several completions, scored prompts, and times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenvm.collect import Collector
from tokenvm.engine.sampling.choice import Choice
from tokenvm.engine.sampling.scoring import Scores
from tokenvm.outputs import CompletionOutput
from tokenvm.schedule.plan import FinishedEvent, TokenEvent
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer
from tokenvm.vocab import SeqId

END = 2
PROMPT = (5, 6, 7)
BITS = ["hello", " wo", "h", "e", "l", "o", "é", "🎉", "<|im_end|>", "<|im_start|>", "o wo", "lo"]


def collect(
    tokenizer: Tokenizer, tokens: Sequence[int], reason: str = "length", **params: Any
) -> tuple[Collector, list[str]]:
    """Say tokens to a collector, with a FinishedEvent after the last; return it and the pieces it streamed."""
    asked = SamplingParams(**{"max_tokens": None} | params)
    collector = Collector(Request("r", PROMPT, asked, 10.0), "text", tokenizer, (END,))
    collector.name([SeqId(3)])
    pieces = []
    for index, token in enumerate(tokens):
        choice = Choice(token, -1.0, 1, ((token, -1.0),))
        stopped = collector.hear(TokenEvent("r", SeqId(3), token, index), {SeqId(3): choice}, 11.0 + index)
        pieces += [chunk.text for chunk in collector.drain()]
        assert collector.output.outputs[0].text == "".join(pieces)
        if stopped:
            break
    last = tokens[-1] if reason == "stop" else None
    collector.hear(FinishedEvent("r", SeqId(3), reason, last), {}, 20.0)
    return collector, pieces + [chunk.text for chunk in collector.drain()]


def said(
    tokenizer: Tokenizer, tokens: Sequence[int], reason: str = "length", **params: Any
) -> CompletionOutput:
    collector, pieces = collect(tokenizer, tokens, reason, **params)
    assert collector.output.finished
    (output,) = collector.output.outputs
    assert output.text == "".join(pieces)
    return output


def naive(
    tokenizer: Tokenizer, tokens: Sequence[int], stops: list[str], min_tokens: int, include: bool, skip: bool
) -> tuple[str, int, str | None]:
    """Decode everything after each token and search all of it; return text, number of tokens and stop string."""
    texts = [tokenizer.decode(tokens[:count], skip).rstrip("\ufffd") for count in range(len(tokens) + 1)]
    ignored = len(texts[min(min_tokens, len(tokens))])
    for count in range(min_tokens + 1, len(tokens) + 1):
        for end in range(ignored + 1, len(texts[count]) + 1):
            ended = [stop for stop in stops if texts[count][:end].endswith(stop)]
            if ended:
                stop = max(ended, key=len)
                return texts[count][: end if include else end - len(stop)], count, stop
    return tokenizer.decode(tokens, skip), len(tokens), None


@given(
    bits=st.lists(st.sampled_from(BITS), max_size=25),
    cut=st.integers(0, 5),
    stops=st.lists(
        st.sampled_from(["o", "lo", "hello", "ohello wo", "é", "l🎉", "wo hello wo", "<|im_end|>"]),
        max_size=3,
    ),
    min_tokens=st.integers(0, 6),
    include=st.booleans(),
    skip=st.booleans(),
)
@settings(max_examples=400)
def test_text_and_stop_are_those_of_decoding_everything_each_time(
    bits: list[str],
    cut: int,
    stops: list[str],
    min_tokens: int,
    include: bool,
    skip: bool,
    tokenizer: Tokenizer,
) -> None:
    """The text may begin inside a character; stop strings may span tokens, or begin inside one."""
    tokens = tokenizer.encode("".join(bits))[cut:]
    params = {"stop": stops, "min_tokens": min_tokens, "skip_special_tokens": skip, "ignore_eos": True}
    output = said(tokenizer, tokens, include_stop_str_in_output=include, **params)
    text, count, stop = naive(tokenizer, tokens, stops, min_tokens, include, skip)
    assert (output.text, len(output.token_ids), output.stop_reason) == (text, count, stop)
    assert output.finish_reason == ("length" if stop is None else "stop")


def test_a_stop_string_longer_than_any_look_back(tokenizer: Tokenizer) -> None:
    stop = "hello" * 300 + "e"
    tokens = tokenizer.encode("h" + stop + "l")
    output = said(tokenizer, tokens, stop=stop)
    assert (output.text, output.stop_reason, len(output.token_ids)) == ("h", stop, len(tokens) - 1)


def test_what_may_become_a_stop_string_is_not_streamed(tokenizer: Tokenizer) -> None:
    _, pieces = collect(tokenizer, tokenizer.encode("hello wo hello"), stop="o wo!")
    assert pieces == ["hell", "o w", "o hell", "o"]


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stop_ids", [[END], []])
def test_the_token_that_stops_is_no_text(include: bool, stop_ids: list[int], tokenizer: Tokenizer) -> None:
    tokens = [*tokenizer.encode("hello"), END]
    output = said(
        tokenizer,
        tokens,
        "stop",
        stop_token_ids=stop_ids,
        include_stop_str_in_output=include,
        skip_special_tokens=False,
    )
    assert output.text == "hello" + tokenizer.token_text(END) * include
    assert output.token_ids == tokens
    assert output.stop_reason == (END if stop_ids else None)
    assert output.finish_reason == "stop"


def test_a_stop_string_is_told_though_the_sequence_ended_with_it(tokenizer: Tokenizer) -> None:
    output = said(tokenizer, tokenizer.encode("hello"), "length", stop="lo")
    assert (output.text, output.finish_reason, output.stop_reason) == ("hel", "stop", "lo")


def test_an_abort_gives_what_was_held_back(tokenizer: Tokenizer) -> None:
    output = said(tokenizer, tokenizer.encode("h🎉")[:-1], "abort", stop="h🎉🎉")
    assert (output.text, output.finish_reason, output.stop_reason) == ("h\ufffd", "abort", None)


def test_several_completions_are_kept_apart_and_in_order(tokenizer: Tokenizer) -> None:
    request = Request("r", PROMPT, SamplingParams(n=3, logprobs=0, stop="e"), 10.0)
    collector = Collector(request, None, tokenizer)
    seqs = [SeqId(at) for at in (7, 9, 8)]
    collector.name(seqs)
    texts = ["hold", "lhell", "ooo"]
    ended = []
    for index in range(5):
        for seq, text in reversed(list(zip(seqs, texts, strict=True))):
            if seq not in ended and index < len(text):
                (token,) = tokenizer.encode(text[index])
                event = TokenEvent("r", seq, token, index)
                if collector.hear(event, {seq: Choice(token, -0.5, 2)}, 12.0):
                    ended.append(seq)
    assert ended == [SeqId(9)]
    for seq in seqs:
        assert not collector.output.finished or seq == SeqId(9)
        collector.hear(FinishedEvent("r", seq, "length"), {}, 15.0)
    outputs = collector.output.outputs
    assert collector.output.finished
    assert [one.index for one in outputs] == [0, 1, 2]
    assert [one.text for one in outputs] == ["hold", "lh", "ooo"]
    assert [one.finish_reason for one in outputs] == ["length", "stop", "length"]
    assert [one.cumulative_logprob for one in outputs] == [-2.0, -1.5, -1.5]
    streamed = ["", "", ""]
    for chunk in collector.drain():
        streamed[chunk.index] += chunk.text
    assert streamed == [one.text for one in outputs]


def test_scores_of_a_prompt_come_once_and_in_order(tokenizer: Tokenizer) -> None:
    """A chunk that ran twice, because a page was damaged, is not told twice."""
    request = Request("r", (5, 6, 7, 8, 9), SamplingParams(prompt_logprobs=1), 10.0)
    collector = Collector(request, None, tokenizer)

    def scores(first: int, count: int) -> Scores:
        return Scores(
            first,
            tuple(Choice(at + 5, -float(at), 2, ((0, -0.5),)) for at in range(first, first + count)),
        )

    for some in (scores(1, 2), scores(1, 2), scores(2, 3), scores(5, 0)):
        collector.score(some)
    told = collector.output.prompt_logprobs
    assert told is not None
    assert told[0] is None
    assert [
        None if one is None else {token: (it.logprob, it.rank) for token, it in one.items()} for one in told
    ] == [
        None,
        *({0: (-0.5, 1), at + 5: (-float(at), 2)} for at in range(1, 5)),
    ]


def test_a_prompt_is_scored_only_where_that_was_asked_for(tokenizer: Tokenizer) -> None:
    collector, _ = collect(tokenizer, [5])
    assert collector.output.prompt_logprobs is None
    collector, _ = collect(tokenizer, [5], prompt_logprobs=0)
    assert collector.output.prompt_logprobs == [None]


def test_times_and_cached_tokens(tokenizer: Tokenizer) -> None:
    collector = Collector(Request("r", PROMPT, SamplingParams(n=2), 10.0), None, tokenizer)
    collector.name([SeqId(0), SeqId(1)])
    collector.begin(SeqId(0), 0, 10.5)
    collector.begin(SeqId(1), 2, 12.0)
    for seq, now_s in ((SeqId(0), 13.0), (SeqId(1), 14.0)):
        collector.hear(TokenEvent("r", seq, 5, 0), {seq: Choice(5)}, now_s)
        assert collector.output.num_cached_tokens is None
        collector.hear(FinishedEvent("r", seq, "length"), {}, now_s + 1)
    metrics = collector.output.metrics
    assert metrics is not None
    assert (metrics.queue_s, metrics.ttft_s, metrics.latency_s, metrics.cached_tokens) == (0.5, 3.0, 5.0, 0)
    assert collector.output.num_cached_tokens == 0


def test_nothing_is_kept_for_a_stream_that_nobody_reads(tokenizer: Tokenizer) -> None:
    collector = Collector(Request("r", PROMPT, SamplingParams()), None, tokenizer, streams=False)
    for index, token in enumerate(tokenizer.encode("hello wo")):
        collector.hear(TokenEvent("r", SeqId(0), token, index), {SeqId(0): Choice(token)}, 1.0)
    collector.hear(FinishedEvent("r", SeqId(0), "length"), {}, 1.0)
    assert collector.drain() == []
    assert collector.output.outputs[0].text == "hello wo"
