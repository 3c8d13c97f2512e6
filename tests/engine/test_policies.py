"""The policy decides what is found again, never what is said."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random

import pytest
from fixtures_engine import BLOCK_TOKENS, greedy, prompt, running, tiny_model

from tokenvm.engine.engine import Engine
from tokenvm.residency.policy.registry import POLICIES
from tokenvm.schedule.plan import FinishedEvent
from tokenvm.schedule.request import Request

SESSIONS = 7
TURNS = 26


def talk() -> list[tuple[int, ...]]:
    """Turns of several sessions behind one common page, in an order that returns to some of them more often."""
    random, grown = Random(3), dict[int, int]()
    turns = []
    for _ in range(TURNS):
        session = min(random.randrange(SESSIONS), random.randrange(SESSIONS))
        grown[session] = min(5, grown.get(session, 1) + 1)
        turns.append(
            prompt(BLOCK_TOKENS + 3)[:BLOCK_TOKENS] + prompt(90, seed=session + 1)[: 16 * grown[session]]
        )
    return turns


def said(engine: Engine) -> list[tuple[int, ...]]:
    """What the engine answers to every turn, two at a time."""
    answers: dict[int, list[int]] = {}
    turns = talk()
    for at in range(0, len(turns), 2):
        for name in (at, at + 1):
            request = Request(f"turn-{name}", turns[name], greedy(3), 0.0)
            (seq,) = engine.add(request)
            answers[seq] = []
        while engine.has_work:
            for event in engine.step().events:
                if not isinstance(event, FinishedEvent):
                    answers[event.seq].append(event.token)
    return [tuple(answers[seq]) for seq in sorted(answers)]


@cache
def unlimited(folder: Path) -> list[tuple[int, ...]]:
    with running(tiny_model(), folder, enable_prefix_caching=False) as engine:
        return said(engine)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unlimited")


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"none"}))
def test_every_policy_says_the_same(name: str, shared_folder: Path, tmp_path: Path) -> None:
    with running(tiny_model(), tmp_path, device_pages=8, disk_pages=14, policy=name) as engine:
        assert said(engine) == unlimited(shared_folder)
        stats = engine.stats()["policy"]
        assert engine.kvcache.vm.room.reclaimed_pages > 0, "there was room for everything"
    assert stats["name"] == name
    assert stats["ruling"] in ((name,) if name != "auto" else ("predictor", "lru", "arc"))
    assert 0 < stats["hit_rate"] <= stats["infinite_hit_rate"]
    assert stats["regret"] == pytest.approx(stats["infinite_hit_rate"] - stats["hit_rate"])
    assert stats["asked_pages"] == sum((len(turn) - 1) // BLOCK_TOKENS for turn in talk())
    if name == "lru":
        assert stats["gain_over_lru"] == pytest.approx(0, abs=0.1), (
            "the shadow knows neither pages in use nor moves"
        )


def test_the_environment_chooses_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenvm.llm import make_settings

    monkeypatch.setenv("TOKENVM_POLICY", "s3fifo")
    assert make_settings().memory.policy == "s3fifo"
