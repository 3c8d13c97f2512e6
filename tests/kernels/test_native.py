"""Choosing an instruction set and a number of threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tokenvm.errors import BuildError
from tokenvm.kernels import native


def test_an_unknown_instruction_set_names_those_that_work() -> None:
    with pytest.raises(BuildError, match=r"mmx.*portable"):
        native.set_isa("mmx")


def test_every_level_can_be_chosen() -> None:
    before = native.isa()
    for level in native.isa_levels():
        native.set_isa(level)
        assert native.isa() == level
    native.set_isa(before)


def test_the_portable_level_is_always_there_and_last() -> None:
    assert native.isa_levels()[-1] == "portable"


@pytest.mark.parametrize(("wanted", "printed"), [("portable", "portable"), ("mmx", "BuildError")])
def test_the_environment_chooses_at_the_first_use(wanted: str, printed: str) -> None:
    code = (
        "from tokenvm.kernels import native\n"
        "try:\n    print(native.isa())\nexcept Exception as e:\n    print(type(e).__name__)"
    )
    environment = {**os.environ, "TOKENVM_ISA": wanted}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == printed


def test_the_number_of_threads() -> None:
    before = native.threads()
    native.set_threads(3)
    assert native.threads() == 3
    with pytest.raises(ValueError, match="at least 1"):
        native.set_threads(0)
    native.set_threads(before)


FORK = """
import os, torch
from tokenvm.kernels import linear, native
native.set_threads(2)
w, x = linear.pack(torch.randn(512, 64)), torch.randn(3, 64)
before = linear.linear(x, w)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(linear.linear(x, w), before) and native.threads() == 2 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.equal(linear.linear(x, w), before))
"""


def test_a_forked_child_starts_its_own_team_and_both_exit() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == ["0", "True"]
