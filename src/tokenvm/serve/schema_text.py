"""The bodies of chat and of completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tokenvm.schedule.sampling_params import MAX_N
from tokenvm.serve.schema import Body, Harmless, Logprobs, SamplingBody, TokenIds, Word
from tokenvm.serve.schema_tools import Tool, ToolCall, ToolChoice


class TextPart(Body):
    """A part of a message. Only text is served."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation."""

    not_served: ClassVar[Mapping[str, tuple[Harmless, str]]] = {
        "annotations": (([],), "leave it out"),
        "audio": ((), "leave it out"),
        "function_call": ((), "use tool_calls"),
        "refusal": ((), "leave it out"),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: Word | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Word | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("missing", "content is missing: send a text", {"field": "content"})
        if self.tool_calls and self.role != "assistant":
            text = "tool_calls are the assistant's: leave them out of other messages"
            raise PydanticCustomError("alone", text, {"field": "tool_calls"})
        return self


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: str | TokenIds | list[str] | list[TokenIds]
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    echo: bool | None = None
    logprobs: Logprobs | None = None


class TokenizeBody(Body):
    """`POST /tokenize`: a prompt or a conversation."""

    model: Word = "default"
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: Word = "default"
    tokens: TokenIds
