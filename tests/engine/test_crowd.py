"""Many requests on a few pages, at random: arrivals, aborts, several answers, pauses, copies that fail.

Ten thousand steps in all. Every law holds after each, and every request says what it says alone with room for all. With
rates as measured it would depend on the day which prefixes are read, so nothing is known of rates.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from fixtures_engine import prompt, running, tiny_model

from tokenvm.engine.account import Account
from tokenvm.engine.engine import Engine, StepResult
from tokenvm.engine.sampling.choice import Choice
from tokenvm.memory.sim import SimDevice
from tokenvm.residency.prefix_plan import Rates
from tokenvm.schedule.plan import FinishedEvent
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.vocab import SeqId, Tier

STEPS, SEEDS = 1000, 5
MODEL = tiny_model()


@cache
def texts() -> list[tuple[int, ...]]:
    """Prompts of 1 to 81 tokens, many of which begin alike for some pages."""
    stems = [prompt(tokens, seed=tokens) for tokens in (16, 33, 48)]
    ends = [prompt(tokens, seed=tokens + 100) for tokens in (1, 15, 16, 17)]
    return [*ends, *(stem + end for stem in stems for end in ends), *(stems[0] + stem for stem in stems)]


@cache
def kinds() -> list[SamplingParams]:
    """Ways to ask."""
    return [
        SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True),
        SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True),
        SamplingParams(temperature=1.0, seed=3, max_tokens=40, stop_token_ids=list(range(3, 70))),
        SamplingParams(temperature=1.0, seed=5, n=3, max_tokens=12, ignore_eos=True),
        SamplingParams(temperature=0.8, seed=7, top_p=0.9, presence_penalty=0.5, max_tokens=20),
        SamplingParams(temperature=0.0, max_tokens=4, prompt_logprobs=1, ignore_eos=True),
    ]


@cache
def alone(text: int, kind: int) -> Asked:
    """What a request says when it is alone and has all the room."""
    with running(MODEL, Path("unused"), enable_prefix_caching=False) as engine:
        crowd = Crowd(engine, random.Random(0))
        crowd.ask(text, kind)
        while engine.has_work:
            crowd.hear(engine.step())
        return crowd.ended[0]


@dataclass
class Asked:
    """A request, and what its sequences have said so far."""

    text: int
    kind: int
    seqs: tuple[SeqId, ...]
    said: list[list[int]] = field(default_factory=list)
    open: set[SeqId] = field(default_factory=set)
    ends: dict[int, str] = field(default_factory=dict)  # why each of the sequences ended
    scores: list[Choice] = field(default_factory=list)  # of the prompt's tokens


class Crowd:
    """An engine and those who ask it."""

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        self.engine, self.rng = engine, rng
        self.live: dict[str, Asked] = {}
        self.ended: list[Asked] = []
        self.counts: Counter[str] = Counter()

    def ask(self, text: int, kind: int, priority: int = 0) -> None:
        """Make a request."""
        name = f"r{self.counts['asked']}"
        self.counts["asked"] += 1
        seqs = self.engine.add(Request(name, texts()[text], kinds()[kind], priority=priority))
        self.live[name] = Asked(text, kind, seqs, [[] for _ in seqs], set(seqs))

    def act(self) -> None:
        """Ask, or take a request back, now and then."""
        if len(self.live) < 12 and self.rng.random() < 0.5:
            short = self.counts["asked"] // 30 % 2 == 0  # for a while all answers are short, then none is
            kind = self.rng.choice([0, 2, 5] if short else [1, 3, 4])
            self.ask(self.rng.randrange(len(texts())), kind, self.rng.choice([0, 0, 0, 1]))
        if self.live and self.rng.random() < 0.03:
            name = self.rng.choice(sorted(self.live))
            self.engine.abort(name)
            del self.live[name]
            self.counts["aborted"] += 1

    def hear(self, result: StepResult) -> None:
        """Take in what a step brought."""
        for seq, scores in result.scores.items():
            asked = next(one for one in self.live.values() if seq in one.seqs)
            asked.scores += scores.choices[len(asked.scores) + 1 - scores.first :]
        for event in result.events:
            asked = self.live[event.request_id]
            if isinstance(event, FinishedEvent):
                asked.ends[asked.seqs.index(event.seq)] = event.reason
                asked.open.discard(event.seq)
                if not asked.open:
                    self.ended.append(self.live.pop(event.request_id))
            else:
                asked.said[asked.seqs.index(event.seq)].append(event.token)

    def step(self) -> None:
        """Do one step and check every law."""
        before = self.engine.scheduler.counts["paused"]
        self.hear(self.engine.step())
        self.engine.kvcache.check()
        self.counts["paused"] += max(0, self.engine.scheduler.counts["paused"] - before)


def run(seed: int, folder: Path) -> Counter[str]:
    """Let a crowd talk, compare every answer, and count what happened."""
    rng = random.Random(seed)
    device = SimDevice(seed)
    device.fail_when(lambda copy: rng.random() < 0.01)
    pages = {"device_pages": rng.randint(6, 16), "host_pages": rng.choice([0, 3, 6]), "disk_pages": 24}
    sizes = {"max_num_seqs": rng.randint(4, 8), "max_tokens_per_forward": rng.choice([20, 64])}
    with running(MODEL, folder, backend=device, lookahead=seed % 5 > 0, **pages, **sizes) as engine:
        crowd = Crowd(engine, rng)
        for _ in range(STEPS):
            crowd.act()
            crowd.step()
        for _ in range(STEPS):
            if engine.has_work:
                crowd.step()
        assert not engine.has_work, "the engine makes no progress"
        engine.kvcache.forget_prefixes()
        engine.kvcache.vm.finish_transfers()
        assert [engine.kvcache.vm.ledger.used(tier) for tier in Tier] == [0, 0, 0]
    for asked in crowd.ended:
        wanted = alone(asked.text, asked.kind)
        assert (asked.said, asked.ends) == (wanted.said, wanted.ends), f"seed {seed}"
        assert repr(asked.scores) == repr(wanted.scores), f"seed {seed}"
    crowd.counts["ended"] += len(crowd.ended)
    crowd.counts["tokens found"] += sum(engine.kvcache.prefix_stats.hit_tokens.values())
    crowd.counts["lost"] += engine.account.lost_pages
    crowd.counts["streamed"] += engine.account.streamed_pages
    return crowd.counts


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [0, SEEDS])
def test_everybody_hears_what_they_would_hear_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(Account, "rates", Rates(0.0, 0.0))
    counts = sum((run(seed, tmp_path) for seed in range(first, first + SEEDS)), Counter[str]())
    wanted = {"ended": 500, "aborted": 50, "paused": 0, "tokens found": 500, "lost": 10, "streamed": 500}
    assert all(counts[name] > least for name, least in wanted.items()), counts
