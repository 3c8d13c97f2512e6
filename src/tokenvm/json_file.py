"""Reading JSON objects that came with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenvm.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raises ModelError when it is missing, damaged or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist: pass a folder that holds a Hugging Face model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}): use an unmodified copy of the model") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object: use an unmodified copy of the model")
    return value
