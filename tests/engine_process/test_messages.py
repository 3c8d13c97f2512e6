"""What crosses the border between the processes comes out as it went in, whole or in pieces."""

import socket
from dataclasses import fields, replace

import msgspec
import numpy as np
import pytest

from tokenvm import errors
from tokenvm.engine.sampling.choice import Choice
from tokenvm.engine.sampling.scoring import Scores
from tokenvm.engine_process.channel import READ_BYTES, Channel, Hangup
from tokenvm.engine_process.messages import (
    HEADER_BYTES,
    MAX_TO_ENGINE_BYTES,
    Abort,
    Stepped,
    Stop,
    Submit,
    Told,
    error_from,
    failure_of,
    for_engine,
    for_front,
    frame,
)
from tokenvm.errors import LimitTooSmall, RequestError, TokenVMError
from tokenvm.schedule.plan import FinishedEvent, TokenEvent
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.vocab import SeqId

SEQ = SeqId(3)
EVERY_ERROR = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TokenVMError)
]


def test_messages_come_out_as_they_went_in() -> None:
    step = Stepped(
        [TokenEvent("7", SEQ, 11, 0)],
        [FinishedEvent("7", SEQ, "stop", 11)],
        {SEQ: Choice(11, -0.5, 1, ((11, -0.5), (4, -1.25)))},
        {SEQ: Scores(1, (Choice(5, -1.5, 2, ()),))},
        {SEQ: 128},
        2.5,
    )
    assert for_front(frame(step)[HEADER_BYTES:]) == step
    for message in (Submit("1", (1, 2), {"top_k": 3}, {"arrival_s": 1.5}), Abort("1"), Stop(SEQ)):
        assert for_engine(frame(message)[HEADER_BYTES:]) == message


def test_scalars_of_numpy_become_plain_numbers() -> None:
    sent = Told(1, {"a": np.float64(0.5), "b": np.int64(3), "c": np.float32(0.25)})
    assert for_front(frame(sent)[HEADER_BYTES:]) == Told(1, {"a": 0.5, "b": 3, "c": 0.25})


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x91\xa4Nope", b"\x92\xa4Stop\xa1x", b"\x92\xa5Abort\x05"]
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        for_engine(payload)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0, max_tokens=5, logprobs=0, ignore_eos=True),
        SamplingParams(
            temperature=np.float64(0.7), top_p=0.5, top_k=5, seed=2**64 - 1, stop_token_ids=[4, 5]
        ),
    ],
    ids=["default", "greedy", "drawn"],
)
def test_sampling_params_come_out_as_they_went_in(params: SamplingParams) -> None:
    request = Request("mine", (1, 2), params, 1.5)
    sent = for_engine(frame(Submit.of(request, "7"))[HEADER_BYTES:])
    assert isinstance(sent, Submit)
    assert sent.request == replace(request, request_id="7")


EVERY_FIELD = {
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 7,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.5,
    "logit_bias": {3: 1.5},
    "stop_token_ids": [4],
    "ignore_eos": True,
    "min_tokens": 2,
    "max_tokens": 9,
    "seed": 5,
    "logprobs": 3,
    "prompt_logprobs": 2,
    "allowed_token_ids": [3, 4],
    "bad_words": ["ugly"],
    "bad_words_token_ids": [[3, 4], [5]],
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
}


def test_no_field_of_a_request_is_dropped() -> None:
    """The stop strings are: the front process finds them."""
    assert EVERY_FIELD.keys() | {"stop", "structured_outputs"} == {
        field.name for field in fields(SamplingParams)
    }
    assert all(getattr(SamplingParams(), name) != value for name, value in EVERY_FIELD.items())
    request = Request("7", (1, 2), SamplingParams(**EVERY_FIELD), 1.5, 4, "chat", "mine")
    assert all(value for value in vars(request).values()), "no field is at its default"
    sent = for_engine(frame(Submit.of(request, "7"))[HEADER_BYTES:])
    assert isinstance(sent, Submit)
    assert sent.request == request


@pytest.mark.parametrize(
    "wanted",
    [
        {"json": {"type": "object", "properties": {"a": {"type": "integer"}}}, "whitespace_pattern": " ?"},
        {"json": '{"type": "array"}', "disable_any_whitespace": True},
        {"regex": "a+b"},
        {"choice": ["yes", "no"]},
        {"grammar": 'root ::= "a"'},
        {"json_object": True},
    ],
    ids=str,
)
def test_what_an_answer_must_look_like_is_sent(wanted: dict[str, object]) -> None:
    request = Request("7", (1, 2), SamplingParams(structured_outputs=wanted))
    sent = for_engine(frame(Submit.of(request, "7"))[HEADER_BYTES:])
    assert isinstance(sent, Submit)
    assert sent.request == request
    assert sent.request.params.structure == request.params.structure


def test_stop_strings_stay_and_seeds_are_cut_to_what_counts() -> None:
    params = SamplingParams(stop="x", seed=-(2**70) - 5)
    sent = Submit.of(Request("mine", (1, 2), params), "7").request
    assert (sent.params.stop, sent.params.seed) == (None, 2**64 - 5)


@pytest.mark.parametrize("kind", EVERY_ERROR, ids=lambda kind: kind.__name__)
def test_every_error_is_made_again(kind: type[TokenVMError]) -> None:
    error = LimitTooSmall("type more", 77) if kind is LimitTooSmall else kind("type more")
    again = error_from(failure_of(error))
    assert type(again) is kind
    assert str(again) == "type more"
    assert getattr(again, "minimum_bytes", None) == getattr(error, "minimum_bytes", None)


@pytest.mark.parametrize(
    "params", [{"seed": 1 << 65}, {"top_k": 1 << 65}, {"stop": "\ud800"}, {"x": ...}], ids=str
)
def test_what_cannot_be_sent_is_refused(params: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="cannot be sent"):
        frame(Submit("1", (1,), params, {}))


def test_messages_arrive_whole_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    sent = [Submit(str(size), tuple(range(size)), {}, {}) for size in (0, 1, 700, 40_000)]
    stream, heard = b"".join(map(frame, sent)), []
    with ours:
        assert channel.receive(0.0) == []
        for begin in range(0, len(stream), 997):
            ours.sendall(stream[begin : begin + 997])
            heard += channel.receive(1.0)
    assert [for_engine(payload) for payload in heard] == sent
    with pytest.raises(Hangup):
        channel.receive(1.0)
    channel.close()


def test_no_more_than_a_little_is_read_at_once() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * READ_BYTES)
    framed = frame(Abort("x" * 1000))
    with ours:
        ours.setblocking(False)
        ours.send(framed * (2 * READ_BYTES // len(framed)))
        assert 0 < len(channel.receive(1.0)) <= READ_BYTES // len(framed)
        channel.close()


def test_sending_never_waits_and_nothing_is_lost() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    for number in range(40):
        channel.send(Told(number, {"text": "x" * 100_000}))
        channel.flush()
    assert channel.unsent_bytes > 0
    heard = bytearray()
    with ours:
        while channel.unsent_bytes:
            heard += ours.recv(1 << 20)
            channel.receive(0.0)
        theirs.close()
        while piece := ours.recv(1 << 20):
            heard += piece
    assert heard == b"".join(frame(Told(number, {"text": "x" * 100_000})) for number in range(40))


def test_a_message_that_is_too_long_is_refused_before_it_is_read() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    with ours:
        ours.sendall((MAX_TO_ENGINE_BYTES + 1).to_bytes(HEADER_BYTES, "little"))
        with pytest.raises(ValueError, match="longer than"):
            channel.receive(1.0)
    channel.close()


def test_a_reader_that_has_gone_is_a_hangup() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    ours.close()
    channel.send(Told(1, {}))
    with pytest.raises(Hangup):
        channel.flush()
    channel.close()
