"""Policies side by side on one trace: what each found, what it cost, and what could have been found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tokenvm.errors import ConfigError
from tokenvm.residency.policy.registry import POLICIES
from tokenvm.simulate.costs import Bill, Costs
from tokenvm.simulate.optimal import optimal
from tokenvm.simulate.replay import Kept
from tokenvm.simulate.trace import Visit

OPTIMAL = "optimal"
BAR = 40
"""Characters of the longest bar of a plot."""


def policies_of(text: str) -> list[str]:
    """Read a policy's name, several with commas, or all; ConfigError for one that does not exist."""
    known = sorted(set(POLICIES) - {"none"})
    names = known if text == "all" else text.split(",")
    for name in names:
        if name not in known:
            raise ConfigError(f'--policy "{name}" does not exist: type --policy all, or {", ".join(known)}')
    return names


def simulate(
    visits: Sequence[Visit], capacities: Sequence[int], policies: Sequence[str], costs: Costs, skip: int = 0
) -> list[dict[str, Any]]:
    """Replay a trace for each capacity and policy, and for the offline optimum; return a row of plain values for each.

    The first `skip` requests are served and not counted. A row's regret is what the optimum found beyond it.
    """
    rows = []
    for pages in capacities:
        bound = _bill(visits, optimal(visits, pages), costs, skip)
        bills = {name: _bill(visits, _found(visits, name, pages), costs, skip) for name in policies}
        for name, bill in {**bills, OPTIMAL: bound}.items():
            regret = bound.hit_rate - bill.hit_rate
            rows.append({"policy": name, "capacity_blocks": pages, **bill.as_dict(), "regret": regret})
    return rows


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a table, and a bar of the hit rate of each row: over capacities, under each policy."""
    table = Table(box=None, padding=(0, 1))
    titles = ["blocks", "policy", "hit rate", "regret", "read", "written", "TTFT p50", "p99"]
    for title in titles:
        table.add_column(title, justify="left" if title == "policy" else "right")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    best = max(row["hit_rate"] for row in rows) or 1.0
    for name in dict.fromkeys(row["policy"] for row in rows):
        console.print(f"\n{name}: hit rate over blocks")
        for row in (row for row in rows if row["policy"] == name):
            bar = "█" * round(BAR * row["hit_rate"] / best)
            console.print(f"{row['capacity_blocks']:>9,} {bar} {100 * row['hit_rate']:.1f} %")


def _cells(row: dict[str, Any]) -> Iterator[str]:
    yield f"{row['capacity_blocks']:,}"
    yield row["policy"]
    yield f"{100 * row['hit_rate']:.2f} %"
    yield f"{100 * row['regret']:.2f}"
    yield f"{row['read_bytes'] / 1e9:,.0f} GB"
    yield f"{row['written_bytes'] / 1e9:,.0f} GB"
    yield f"{row['ttft_p50_s']:.2f} s"
    yield f"{row['ttft_p99_s']:.2f} s"


def _found(visits: Sequence[Visit], policy: str, pages: int) -> list[int]:
    kept = Kept(policy, pages)
    return [kept.serve(visit.keys) for visit in visits]


def _bill(visits: Sequence[Visit], found: Sequence[int], costs: Costs, skip: int) -> Bill:
    bill = Bill(costs)
    for visit, pages in list(zip(visits, found, strict=True))[skip:]:
        bill.enter(visit, pages)
    return bill
