"""What is said where the native extension is missing."""

import sys

import pytest

from tokenvm.errors import BuildError
from tokenvm.memory.cpu import CpuDevice


def test_a_missing_extension_is_a_build_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenvm._native", None)
    with pytest.raises(BuildError, match="type `pip install"):
        CpuDevice()
