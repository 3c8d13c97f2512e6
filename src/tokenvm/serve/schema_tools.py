"""What requests may say about tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tokenvm.serve.schema import Body, Word

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


class Function(Body):
    """A function that the model may ask for; `parameters` is a JSON Schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool. Only functions are served."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """Which function has to be called."""

    name: FunctionName


class NamedChoice(Body):
    """A `tool_choice` that names a function."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


class CalledFunction(Body):
    """A function that was called; `arguments` are JSON as text."""

    name: FunctionName
    arguments: str


class ToolCall(Body):
    """A call in an earlier message of the assistant."""

    id: Word
    type: Literal["function"] = "function"
    function: CalledFunction
