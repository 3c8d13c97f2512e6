"""What a body wants an answer to look like, as StructuredOutputsParams."""

from __future__ import annotations

from typing import Any

from tokenvm.schedule.structured_outputs import StructuredOutputsParams
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.schema import ResponseFormat, SamplingBody


def shape_of(body: SamplingBody) -> StructuredOutputsParams | None:
    """Return what `response_format` or `structured_outputs` asks for, None for any text.

    Raises Refusal for both at once, RequestError for what is not possible.
    """
    given, wanted = body.structured_outputs, _of_format(body.response_format)
    if given is None:
        return wanted
    if wanted is not None:
        text = "response_format and structured_outputs say the same thing: send one of them"
        raise Refusal(text, param="structured_outputs")
    return StructuredOutputsParams.of(given.model_dump(by_alias=True, exclude_none=True))


def _of_format(given: ResponseFormat | None) -> StructuredOutputsParams | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if given.json_schema is None:
        text = 'response_format of type json_schema needs one: send {"name": ..., "schema": {...}}'
        raise Refusal(text, param="response_format.json_schema")
    return StructuredOutputsParams(json=given.json_schema.schema_)


def calls_of(tools: list[dict[str, Any]], most: int | None) -> StructuredOutputsParams:
    """Return the shape of an answer that is a list of calls of these functions, at least one and at most `most`.

    `tools` have a name and parameters each. References inside their schemas follow these to where they are put.
    """
    calls = [_call(index, one) for index, one in enumerate(tools)]
    definitions = {name: schema for _, found in calls for name, schema in found.items()}
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": [call for call, _ in calls]}}
    if most is not None:
        schema["maxItems"] = most
    if definitions:
        schema["$defs"] = definitions
    return StructuredOutputsParams(json=schema)


def _call(index: int, tool: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    parameters = dict(tool.get("parameters") or {"type": "object", "properties": {}})
    places = {}
    definitions = {}
    for key in ("$defs", "definitions"):
        for name, schema in dict(parameters.pop(key, None) or {}).items():
            places[f"#/{key}/{name}"] = f"#/$defs/tool{index}_{name}"
            definitions[f"tool{index}_{name}"] = schema
    definitions = {name: _moved(schema, places) for name, schema in definitions.items()}
    call = {
        "type": "object",
        "properties": {"name": {"const": tool["name"]}, "arguments": _moved(parameters, places)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    return call, definitions


def _moved(schema: Any, places: dict[str, str]) -> Any:
    """Return a schema whose references name the new places."""
    if isinstance(schema, list):
        return [_moved(one, places) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: places.get(value, value) if key == "$ref" and isinstance(value, str) else _moved(value, places)
        for key, value in schema.items()
    }
