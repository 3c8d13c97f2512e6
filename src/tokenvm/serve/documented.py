"""What our OpenAPI document says of answers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from tokenvm.serve.schema import ErrorBody

DOCUMENTED: Final[Mapping[int | str, dict[str, Any]]] = MappingProxyType(
    {
        200: {
            "description": "The answer; with stream=true, server-sent events.",
            "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
        },
        "default": {"description": "An error.", "model": ErrorBody},
    }
)
"""For routes whose answer is JSON that OpenAI defines, or a stream of it."""
