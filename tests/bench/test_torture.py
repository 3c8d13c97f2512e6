"""Samples of what `make torture` and `make soak` do at length."""

import json
import os
import subprocess
import sys
from pathlib import Path

import soak
import torture

import tokenvm

KILLS, DAMAGES = 18, 50


def test_killed_writers_and_damaged_files_never_make_a_wrong_answer(tmp_path: Path) -> None:
    """In a process of its own, which forks: it must have no threads."""
    script = Path(torture.__file__)
    asked = ["--kills", str(KILLS), "--damages", str(DAMAGES), "--json", "--path", str(tmp_path)]
    source = str(Path(tokenvm.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script), *asked],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["wrong"] == []
    assert figures["kills"] == KILLS
    assert figures["damages"] == DAMAGES
    starts = KILLS + DAMAGES // torture.PER_START
    assert figures["answers"] == starts * torture.PROMPTS
    assert figures["flushed pages found again"] > 0
    assert figures["damaged copies counted"] > 0
    assert figures["tokens served from disk"] > 0


def test_a_short_soak_answers_everybody_within_the_limit(tmp_path: Path) -> None:
    figures = soak.run(1.0, tmp_path, texts=40, rate=0.02, seed=1, progress=False)
    holds = soak.verdict(figures, moves_wanted=1)
    del holds["resident memory flat"]  # too short to say
    assert all(holds.values()), holds
    assert figures["answered"] > 10
    assert figures["wrong"] == figures["failed"] == 0
