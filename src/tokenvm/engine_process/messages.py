"""What the front process and the engine process say to each other.

A message is an array with its kind first, in MessagePack, behind its length as four bytes. Nothing is pickled: reading
a message makes only the types below.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from tokenvm import errors
from tokenvm.engine.sampling.choice import Choice
from tokenvm.engine.sampling.scoring import Scores
from tokenvm.errors import LimitTooSmall, RequestError, TokenVMError
from tokenvm.schedule.plan import FinishedEvent, TokenEvent
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.vocab import SeqId

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HEADER_BYTES: Final = 4
MAX_TO_ENGINE_BYTES: Final = 64 << 20
"""The longest message to the engine: a prompt of some ten million tokens."""

_NAMED: Final = ("request_id", "prompt_token_ids")
_SEEDS: Final = 1 << 64
"""Seeds that are equal modulo this draw the same tokens."""


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Start(_Message, frozen=True):
    """Make an engine: the arguments of LLM. `memory` has the settings that were given, `numbers` the others.

    `tokenizer` is the tokenizer's folder, empty for the model's.
    """

    model: str
    memory: dict[str, int | str]
    dtype: str
    numbers: dict[str, int | bool | None]
    tokenizer: str = ""


class Submit(_Message, frozen=True):
    """Take a request. `name` is unique for ever; `params` and `others` have what is not at its default."""

    name: str
    prompt_token_ids: tuple[int, ...]
    params: dict[str, Any]
    others: dict[str, Any]

    @classmethod
    def of(cls, request: Request, name: str) -> Self:
        """Describe a request under another name; without the stop strings, which the front process finds."""
        params, others = _given(request.params, ("stop",)), _given(request, ("params", *_NAMED))
        if params.get("seed") is not None:
            params["seed"] %= _SEEDS
        return cls(name, request.prompt_token_ids, params, others)

    @property
    def request(self) -> Request:
        """The request that was described. Raises RequestError for a value out of range."""
        return Request(self.name, self.prompt_token_ids, SamplingParams(**self.params), **self.others)


class Abort(_Message, frozen=True):
    """End every sequence of a request, if it has any left."""

    name: str


class Stop(_Message, frozen=True):
    """A stop string ended this sequence's text; nothing to do if it has finished."""

    seq: SeqId


class Ask(_Message, frozen=True):
    """Tell me your counters; also shows that steps are being taken."""

    number: int


class Leave(_Message, frozen=True):
    """Close the engine and end."""


ToEngine = Start | Submit | Abort | Stop | Ask | Leave


class Loading(_Message, frozen=True):
    """How far the start is; see `models.progress.Progress`."""

    message: str
    done: int
    total: int


class Ready(_Message, frozen=True):
    """The engine stands. `folder` and `ends`, its end tokens, are the model's; `plan` is `StartupPlan.as_dict()`."""

    folder: str
    ends: frozenset[int]
    plan: dict[str, Any]


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A TokenVMError on its way: the name of its class, its message, and a LimitTooSmall's minimum."""

    kind: str
    message: str
    minimum_bytes: int = 0


class StartFailed(_Message, frozen=True):
    """There is no engine, because of something that the user can correct."""

    failure: Failure


class Accepted(_Message, frozen=True):
    """A request has these sequences, one for each answer, in order."""

    name: str
    seqs: tuple[SeqId, ...]


class Refused(_Message, frozen=True):
    """A request ended without an answer."""

    name: str
    failure: Failure


class Stepped(_Message, frozen=True):
    """What a step brought, in order, or an abort; the fields are those of `StepResult`, its events in two lists."""

    tokens: list[TokenEvent]
    ends: list[FinishedEvent]
    choices: dict[SeqId, Choice] = {}
    scores: dict[SeqId, Scores] = {}
    begins: dict[SeqId, int] = {}
    began_s: float = 0.0


class Told(_Message, frozen=True):
    """The answer to an `Ask`."""

    number: int
    stats: dict[str, Any]


class Died(_Message, frozen=True):
    """The engine ends by an error that is a bug, or lack of memory."""

    trace: str


ToFront = Loading | Ready | StartFailed | Accepted | Refused | Stepped | Told | Died

_DECODE_FOR_ENGINE: Final = msgspec.msgpack.Decoder(ToEngine)
_DECODE_FOR_FRONT: Final = msgspec.msgpack.Decoder(ToFront)


def frame(message: ToEngine | ToFront) -> bytes:
    """Encode a message, its length in front.

    Raises RequestError for text that is not valid Unicode and for numbers beyond 64 bits.
    """
    try:
        payload = msgspec.msgpack.encode(message, enc_hook=_plain)
    except (UnicodeEncodeError, OverflowError, TypeError) as error:
        raise RequestError(
            f"this cannot be sent to the engine ({error}): use whole characters and numbers of 64 bits"
        ) from error
    return struct.pack("<I", len(payload)) + payload


def payload_bytes(header: bytes | bytearray | memoryview) -> int:
    """Return the length that a message's first four bytes name."""
    length: int = struct.unpack_from("<I", header)[0]
    return length


def for_engine(payload: bytes) -> ToEngine:
    """Decode what the engine process was sent; msgspec.DecodeError if it is not a message."""
    message: ToEngine = _DECODE_FOR_ENGINE.decode(payload)
    return message


def for_front(payload: bytes) -> ToFront:
    """Decode what the front process was sent; msgspec.DecodeError if it is not a message."""
    message: ToFront = _DECODE_FOR_FRONT.decode(payload)
    return message


def failure_of(error: TokenVMError) -> Failure:
    """Describe an error so that `error_from` can make it again."""
    minimum = error.minimum_bytes if isinstance(error, LimitTooSmall) else 0
    return Failure(type(error).__name__, str(error), minimum)


def error_from(failure: Failure) -> TokenVMError:
    """Make an error of the class and with the message that the engine process raised."""
    kind = getattr(errors, failure.kind, TokenVMError)
    if kind is LimitTooSmall:
        return LimitTooSmall(failure.message, failure.minimum_bytes)
    made: TokenVMError = kind(failure.message)
    return made


def _given(of: DataclassInstance, without: Collection[str]) -> dict[str, Any]:
    """Return the fields that differ from their defaults."""
    values = {field.name: (getattr(of, field.name), field.default) for field in fields(of)}
    return {name: value for name, (value, usual) in values.items() if name not in without and value != usual}


def _plain(value: Any) -> Any:
    """Turn the scalars of numpy and of subclasses into Python's own."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} is not a number, a text or a list of them")
