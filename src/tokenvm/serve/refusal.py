"""Errors as OpenAI's clients read them: one object, which names the field that is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tokenvm.errors import EngineDeadError, RequestError, StorageError, TokenVMError

_FIELD: Final = re.compile(r"SamplingParams\.(\w+)")
_TOO_LONG: Final = re.compile(r"\bthe model allows\b|\ball tiers together hold\b")
_KINDS: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_CODES: Final[Mapping[str, str]] = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "unsupported": "unsupported_parameter",
    "json_invalid": "invalid_json",
}
"""pydantic's kind of error → OpenAI's code."""


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """An answer that is an error: its HTTP status, OpenAI's error object and further headers.

    `param` is the field that is wrong, `code` a word for programs.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's `type`, which follows from the status."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        return _KINDS.get(self.status, usual)

    def as_dict(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def unsupported(field: str, why: str) -> Refusal:
    """Refuse a field that OpenAI or vLLM know and this server does not serve; `why` says what to do instead."""
    return Refusal(f"{field} is not supported: {why}", param=field, code="unsupported_parameter")


def refusal_of(error: TokenVMError) -> Refusal:
    """Say an engine's error in HTTP's terms."""
    message = str(error).replace("SamplingParams.", "")
    if isinstance(error, RequestError):
        found = _FIELD.search(str(error))
        code = "context_length_exceeded" if _TOO_LONG.search(message) else None
        return Refusal(message, param=found[1] if found else None, code=code)
    if isinstance(error, EngineDeadError):
        return Refusal(
            f"the engine ended and is being restarted, ask again: {message}",
            status=503,
            code="engine_restarting",
            headers={"Retry-After": "1"},
        )
    if isinstance(error, StorageError):
        return Refusal(message, status=503, code="out_of_memory", headers={"Retry-After": "5"})
    return Refusal(message, status=500, code="engine_error")


def refusal_of_body(errors: Sequence[Any]) -> Refusal:
    """Say what is wrong with a body, by one of pydantic's errors, which names the field."""
    first = _plainest(errors)
    if first["type"] == "json_invalid":
        return Refusal(
            f"the body is not JSON ({first.get('ctx', {}).get('error', 'malformed')}): send a JSON object",
            code="invalid_json",
        )
    places = [str(step) for step in first["loc"][1:] if not _is_branch(step)]
    field = ".".join(places) or None
    if first["type"] == "extra_forbidden":
        text = f"{field} is not a field of this request: leave it out"
    elif first["type"] == "missing":
        text = f"{field or 'the body'} is missing: send {field or 'a JSON object as application/json'}"
    elif first["type"] == "unsupported":
        text = first["msg"]
    else:
        text = f"{field or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
    where = first.get("ctx", {}).get("field", field)
    return Refusal(text, param=where, code=_CODES.get(first["type"]))


def _plainest(errors: Sequence[Any]) -> Any:
    """Return the first error or, where a field may be several things, that of the one which was meant."""
    alike = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    return max(alike, key=lambda error: (len(error["loc"]), not error["type"].endswith("_type")))


def _whole(text: str | None) -> str | None:
    """Replace what is no character: clients may send halves of one, and an answer must be text."""
    return None if text is None else text.encode("utf-8", "replace").decode()


def _is_branch(step: object) -> bool:
    """Whether a step of a location names a member of a union, not a field."""
    return isinstance(step, str) and (
        "[" in step or step in ("str", "int", "float", "bool", "list", "function-after", "constrained-str")
    )
