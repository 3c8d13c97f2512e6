"""Log lines for people or, as JSON objects, for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """`LEVEL logger: message key=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the trace below it if there is one."""
        pairs = "".join(f" {key}={value}" for key, value in _fields(record).items())
        line = f"{record.levelname} {record.name}: {record.getMessage()}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up_logs(as_json: bool, requests: bool) -> None:
    """Send our lines to standard error; those about single requests only if asked."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines() if as_json else TextLines())
    ours = logging.getLogger("tokenvm.serve")
    ours.handlers[:] = [lines]
    ours.propagate = False
    if ours.getEffectiveLevel() > logging.INFO:
        ours.setLevel(logging.INFO)
    logging.getLogger("tokenvm.serve.access").setLevel(logging.INFO if requests else logging.ERROR)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields
