"""The contest with other engines: what is asked, what is counted, and peers that fail. No engine runs here."""

from __future__ import annotations

import argparse
import math
import random
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from compare import Contest, rounds, trial
from peers.worker import PeerError, Worker
from peers.workloads import MEASURES, WORKLOADS, Prompts, advantages, best_threads, random_prompt
from perplexity import change, perplexity, windows


class Pretended:
    """Takes a second to read a prompt, whatever its length, and a tenth of one for each further token."""

    pace_s = 0.1
    settings = "none"

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def seconds(self, prompts: Prompts, n_out: int) -> float:
        self.asked.append((len(prompts), len(prompts[0]), n_out))
        return 1.0 + self.pace_s * (n_out - 1)


@pytest.mark.parametrize(
    ("workload", "figures", "asked"),
    [
        ("decode", {"decode": 10.0}, [(1, 512, 1), (1, 512, 65)]),
        ("long", {"long_ttft": 1.0, "long_step": 100.0}, [(1, 8000, 1), (1, 8000, 65)]),
        ("batch", {"batch": 64 * 64 / 7.3}, [(64, 128, 64)]),
        ("shared", {"shared": 64 * 32 / 4.1}, [(64, 1056, 32)]),
    ],
)
def test_workloads(workload: str, figures: dict[str, float], asked: list[tuple[int, int, int]]) -> None:
    engine = Pretended()
    found = WORKLOADS[workload](engine, random.Random(0))
    assert found == pytest.approx(figures)
    assert engine.asked == asked
    assert found.keys() <= MEASURES.keys()


def test_shared_prompts_share_their_prefix_and_nothing_else() -> None:
    seen: list[Prompts] = []

    class Listener:
        def seconds(self, prompts: Prompts, n_out: int) -> float:
            seen.append(prompts)
            return 1.0

    WORKLOADS["shared"](Listener(), random.Random(1))
    (prompts,) = seen
    assert len({tuple(prompt[:1024]) for prompt in prompts}) == 1
    assert len({tuple(prompt[1024:]) for prompt in prompts}) == 64


def test_prompts_avoid_special_tokens_and_repeat_with_the_seed() -> None:
    ids = random_prompt(random.Random(3), 500)
    assert ids == random_prompt(random.Random(3), 500)
    assert min(ids) >= 1000
    assert max(ids) < 40000


def test_rates_and_times_point_the_same_way() -> None:
    assert advantages("decode", [20.0, 30.0], [10.0, 10.0]) == [2.0, 3.0]
    assert advantages("long_ttft", [2.0], [6.0]) == [3.0]
    with pytest.raises(ValueError):
        advantages("decode", [1.0], [1.0, 2.0])


def test_the_best_number_of_threads() -> None:
    trial = {1: {"decode": 10.0, "long_ttft": 5.0}, 2: {"decode": 9.0, "long_ttft": 4.0}}
    assert best_threads(trial, "decode") == 1
    assert best_threads(trial, "long_ttft") == 2
    assert best_threads({2: {"decode": 1.0}, 1: {"decode": 1.0}}, "decode") == 1


def test_windows_are_whole_and_do_not_overlap() -> None:
    assert windows(list(range(7)), 3) == [[0, 1, 2], [3, 4, 5]]
    assert windows([1, 2], 3) == []


def test_perplexity_and_its_change() -> None:
    exact, worse = [[1.0, 3.0], [2.0, 2.0]], [[1.1, 3.1], [2.0, 2.0]]
    assert perplexity(exact) == pytest.approx(math.e**2)
    more, error = change(worse, exact)
    assert more == pytest.approx(math.e**0.05 - 1)
    assert error == pytest.approx(0.05)
    assert change(exact, exact) == (0.0, 0.0)
    assert change([[1.0]], [[1.0]]) == (0.0, 0.0)


class Broken:
    def seconds(self, prompts: Prompts, n_out: int) -> float:
        raise PeerError("out of breath")


def test_a_peer_that_fails_midway_is_left_out_with_its_reason(tmp_path: Path) -> None:
    options = argparse.Namespace(lock=tmp_path / "lock", rounds=2, stack=ExitStack())
    with options.stack:
        contest = Contest(options)
        contest.workers = {"tokenvm": {1: Pretended(), 2: Pretended()}, "vllm": {2: Broken()}}  # type: ignore[dict-item]
        best = {"tokenvm": {"decode": 1}, "vllm": {"decode": 2}}
        figures = rounds(contest, ["decode"], best, random.Random(0))
    assert figures == {"tokenvm": {"decode": pytest.approx([10.0, 10.0])}}
    assert contest.skipped == {"vllm": "failed in decode: out of breath"}


def test_a_trial_chooses_the_threads_of_each_workload(tmp_path: Path) -> None:
    fast, slow = Pretended(), Pretended()
    fast.pace_s = 0.05
    options = argparse.Namespace(lock=None, rounds=1, stack=ExitStack())
    with options.stack:
        contest = Contest(options)
        contest.workers = {"tokenvm": {1: slow, 2: fast}, "vllm": {1: slow}}  # type: ignore[dict-item]
        assert trial(contest, ["decode", "long"], random.Random(0)) == {
            "tokenvm": {"decode": 2, "long": 1},
            "vllm": {"decode": 1, "long": 1},
        }


DRIVER = """
from loop import serve

def open_engine(model, threads, kv_bytes):
    print("chatter that is not an answer")
    if threads == 13:
        raise RuntimeError("no such luck")
    return lambda prompts, n_out: [p[:1] * (n_out - (threads == 7)) for p in prompts], {"threads": threads}

serve(open_engine)
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a driver of a peer that repeats the first token."""
    loop = Path(sys.modules[Worker.__module__].__file__ or "").with_name("loop.py")
    (tmp_path / "loop.py").write_text(loop.read_text())
    (tmp_path / "drive_echo.py").write_text(DRIVER)
    monkeypatch.setattr("peers.worker.HERE", tmp_path)
    return tmp_path


def test_a_peer_answers_jobs_and_its_chatter_is_no_answer(here: Path) -> None:
    worker = Worker("echo", sys.executable, here, 2, here / "log")
    worker.start()
    assert worker.settings == {"threads": 2}
    assert worker.tokens([[5, 6], [7]], 3) == [[5, 5, 5], [7, 7, 7]]
    assert worker.seconds([[5]], 1) >= 0
    worker.close()
    assert "chatter" in (here / "log").read_text()


def ask(worker: Worker) -> None:
    worker.start()
    worker.tokens([[5]], 3)


@pytest.mark.parametrize(("threads", "why"), [(13, "no such luck"), (7, "3 tokens were asked for")])
def test_a_peer_that_fails_says_why(here: Path, threads: int, why: str) -> None:
    worker = Worker("echo", sys.executable, here, threads, here / "log")
    with pytest.raises(PeerError, match=why):
        ask(worker)
    worker.close()
