"""The body of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tokenvm.serve.schema import Body, Harmless, Whole, Word
from tokenvm.serve.schema_tools import FunctionName

_ALONE = "this server keeps no answers: send the whole conversation as input"


class InputPart(Body):
    """A part of a message. Only text is served."""

    not_served: ClassVar[Mapping[str, tuple[Harmless, str]]] = {
        "annotations": (([],), "leave it out"),
        "logprobs": (([],), "leave it out"),
    }

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputMessage(Body):
    """One message; also one of an earlier answer's output."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputPart]
    id: Word | None = None
    status: Word | None = None


class InputCall(Body):
    """A call that an earlier answer asked for."""

    type: Literal["function_call"]
    call_id: Word
    name: FunctionName
    arguments: str
    id: Word | None = None
    status: Word | None = None


class InputResult(Body):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: Word
    output: str | list[InputPart]
    id: Word | None = None
    status: Word | None = None


class FlatFunction(Body):
    """A function that the model may ask for; `parameters` is a JSON Schema."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatChoice(Body):
    """A `tool_choice` that names a function."""

    type: Literal["function"]
    name: FunctionName


class TextFormat(Body):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: Word | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(Body):
    """How the text of an answer is written."""

    not_served: ClassVar[Mapping[str, tuple[Harmless, str]]] = {
        "verbosity": (("medium",), "leave it out and say it in the prompt")
    }

    format: TextFormat | None = None


class ResponseBody(Body):
    """`POST /v1/responses`, of which nothing is kept; the last fields are vLLM's."""

    not_served: ClassVar[Mapping[str, tuple[Harmless, str]]] = {
        "store": ((False,), "answers are not kept: leave it out, or send false"),
        "previous_response_id": ((), _ALONE),
        "conversation": ((), _ALONE),
        "background": ((False,), "use /v1/batches"),
        "include": (([],), "leave it out"),
        "reasoning": (({},), "leave it out"),
        "prompt": ((), "send instructions and input"),
        "max_tool_calls": ((), "leave it out"),
        "service_tier": (("auto", "default"), 'leave it out, or send "auto"'),
        "truncation": (("disabled",), 'leave it out, or send "disabled"'),
        "top_logprobs": ((0,), "use /v1/chat/completions"),
        "stream_options": (({}, {"include_obfuscation": False}), "leave it out"),
        "context_management": ((), "leave it out"),
        "prompt_cache_retention": ((), "leave it out"),
    }

    model: Word = "default"
    input: str | Annotated[list[InputMessage | InputCall | InputResult], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1e6)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    tools: list[FlatFunction] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    user: Word | None = None
    safety_identifier: Word | None = None
    prompt_cache_key: Word | None = None

    seed: Whole | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    priority: Whole | None = None
    cache_salt: Word | None = None
