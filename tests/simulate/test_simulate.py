"""Traces are read, replayed and perturbed as they say; no policy beats the optimum; the command ends with one line."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from tokenvm.cli import app
from tokenvm.errors import ConfigError
from tokenvm.residency.policy.lru import Lru
from tokenvm.residency.policy.registry import POLICIES
from tokenvm.residency.policy.shadow import Shadow
from tokenvm.simulate.costs import Bill, Costs, quantile
from tokenvm.simulate.optimal import optimal
from tokenvm.simulate.replay import Kept
from tokenvm.simulate.trace import Visit, perturbed, read_trace
from tokenvm.vocab import PageKey

NAMES = sorted(set(POLICIES) - {"none"})


def visit(at: float, *names: int) -> Visit:
    return Visit(at, tuple(PageKey(bytes([name])) for name in names), 512 * len(names), 1)


def sessions(requests: int, seed: int = 5) -> list[Visit]:
    """Sessions behind two common pages, which grow by a page each turn."""
    random, grown = Random(seed), dict[int, int]()
    made = []
    for at in range(requests):
        session = min(random.randrange(14), random.randrange(14))
        grown[session] = grown.get(session, 0) + 1
        made.append(
            visit(
                float(at), session % 2, *(2 + session * 17 + page for page in range(min(12, grown[session])))
            )
        )
    return made


def write(path: Path, visits: list[Visit]) -> Path:
    rows = [
        {
            "timestamp": v.arrival_s * 1e3,
            "input_length": v.input_tokens,
            "output_length": 1,
            "hash_ids": [k[0] for k in v.keys],
        }
        for v in visits
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def best_of_all(visits: list[Visit], pages: int) -> int:
    """The most that any choice of victims finds: tries all of them."""
    states = {frozenset[PageKey](): 0}
    for one in visits:
        after: dict[frozenset[PageKey], int] = {}
        for here, found in states.items():
            hits = next((at for at, key in enumerate(one.keys) if key not in here), len(one.keys))
            known = here | set(one.keys)
            for kept in combinations(sorted(known), min(pages, len(known))):
                state = frozenset(kept)
                after[state] = max(after.get(state, 0), found + hits)
        states = after
    return max(states.values())


def test_the_optimum_is_that_of_all_choices() -> None:
    for seed in range(8):
        random = Random(seed)
        trace = [
            visit(at, *range(root, root + random.randint(1, 3)))
            for at in range(7)
            for root in [10 * random.randrange(3)]
        ]
        assert sum(optimal(trace, 3)) == best_of_all(trace, 3)


@pytest.mark.parametrize("name", NAMES)
def test_no_policy_finds_more_than_the_optimum(name: str) -> None:
    trace = sessions(300)
    for pages in (6, 20):
        kept = Kept(name, pages)
        found = sum(kept.serve(one.keys) for one in trace)
        assert 0 < found <= sum(optimal(trace, pages))


@pytest.mark.parametrize("name", NAMES)
def test_with_room_for_everything_all_policies_are_alike(name: str) -> None:
    trace, seen, expected = sessions(200), set[PageKey](), []
    for one in trace:
        expected.append(sum(key in seen for key in one.keys))
        seen.update(one.keys)
    kept = Kept(name, 1000)
    assert [kept.serve(one.keys) for one in trace] == expected == optimal(trace, 1000)


def test_lru_in_the_index_is_lru_over_names() -> None:
    trace, kept, plain = sessions(300), Kept("lru", 20), Shadow[PageKey](Lru())
    plain.resize(20)
    for one in trace:
        assert kept.serve(one.keys) == plain.leading(one.keys)
        plain.ask(one.keys)


def test_a_cyclic_scan_is_nothing_to_lru() -> None:
    """Laps over one page more than fit. Who keeps what lies there finds all but one or two."""
    trace = [visit(float(at), at % 9) for at in range(900)]
    kept = Kept("lru", 8)
    assert sum(kept.serve(one.keys) for one in trace) == 0
    assert sum(optimal(trace, 8)) >= 900 * 7 // 8 - 9


def test_readers(tmp_path: Path) -> None:
    trace = sessions(20)
    assert [len(v.keys) for v in read_trace(write(tmp_path / "a.jsonl", trace))] == [
        len(v.keys) for v in trace
    ]
    azure = tmp_path / "b.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.9799600,512,8\n"
    )
    first, second = read_trace(azure)
    assert (first.arrival_s, second.arrival_s) == (0.0, 2.0)
    assert (len(first.keys), len(second.keys), second.output_tokens) == (10, 1, 8)
    assert not set(first.keys) & set(second.keys)
    for path, form, complaint in (
        (tmp_path / "none.jsonl", "auto", "is no trace"),
        (azure, "mooncake", "is no trace"),
        (azure, "parquet", "type --format mooncake or azure"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            read_trace(path, form)


def test_a_perturbed_trace_has_other_names_and_pauses_and_the_same_shape() -> None:
    trace = sessions(200)
    changed = perturbed(trace, 3)
    assert perturbed(trace, 3) == changed != perturbed(trace, 4)
    assert not {key for v in trace for key in v.keys} & {key for v in changed for key in v.keys}
    assert sorted(len(v.keys) for v in trace) == sorted(len(v.keys) for v in changed)
    assert sum(optimal(changed, 10**6)) == sum(optimal(trace, 10**6)), "who goes on from whom stays"
    assert (
        [v.arrival_s for v in changed] == sorted(v.arrival_s for v in changed) != [v.arrival_s for v in trace]
    )


def test_costs_count_waiting_reading_and_computing() -> None:
    bill = Bill(Costs(100, 50.0, 512.0))
    bill.enter(visit(0.0, 1, 2), 0)
    bill.enter(visit(1.0, 1, 2, 3), 2)
    assert bill.ttft_s == [2.0, pytest.approx(1.0 + 4.0 + 1.0)]
    assert bill.as_dict()["hit_rate"] == pytest.approx(2 / 5)
    assert (bill.as_dict()["read_bytes"], bill.as_dict()["written_bytes"]) == (200, 300)
    alone = Bill(Costs(100, 50.0, 512.0, speed=0.0))
    alone.enter(visit(0.0, 1, 2), 0)
    alone.enter(visit(1.0, 1, 2, 3), 2)
    assert alone.ttft_s == [2.0, 5.0]
    assert [quantile([3, 1, 2], share) for share in (0.0, 0.5, 0.99)] == [1, 2, 3]


def test_the_command_ends_with_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.jsonl", sessions(60))
    options = ["--trace", str(path), "--capacity-blocks", "10,20", "--json"]
    result = CliRunner().invoke(app, ["simulate", *options, "--policy", "all"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output.splitlines()[-1])["policies"]
    assert [row["policy"] for row in rows] == 2 * [*NAMES, "optimal"]
    assert all(0 <= row["regret"] < 1 and row["ttft_p99_s"] >= row["ttft_p50_s"] > 0 for row in rows)
    half = CliRunner().invoke(
        app, ["simulate", *options, "--policy", "lru", "--second-half", "--perturb", "2"]
    )
    assert json.loads(half.output.splitlines()[-1])["policies"][0]["hit_rate"] != rows[1]["hit_rate"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--policy", "mru"], "--policy all"),
        (["--capacity-blocks", "0"], "--capacity-blocks 1000,5000"),
        (["--read-bandwidth", "0"], "--read-bandwidth"),
    ],
)
def test_bad_options_say_what_to_type(options: list[str], complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path / "trace.jsonl", sessions(3))
    result = CliRunner().invoke(app, ["simulate", "--trace", str(path), *options])
    assert isinstance(result.exception, ConfigError)
    assert complaint in str(result.exception)
