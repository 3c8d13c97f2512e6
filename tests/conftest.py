"""One torch thread in every test: two busy cores make an OpenMP region cost a scheduler quantum."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def disk_path(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk: where temporary files lie in memory (tmpfs), their page cache is all there is of them."""
    if not in_memory(tmp_path):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".tmp-") as folder:
        yield Path(folder)


def in_memory(path: Path) -> bool:
    device = os.stat(path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return any(name == fields[2] and "tmpfs" in fields[fields.index("-") + 1] for fields in mounts)
