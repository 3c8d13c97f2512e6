"""A sample of what `benchmarks/fuzz_server.py` sends: no 5xx, and enough that is accepted."""

import sys
from pathlib import Path

from serve_world import Server

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fuzz_server import fuzz


def test_made_up_requests_are_answered_or_refused(server: Server) -> None:
    tally = fuzz(server.url, 60)
    assert tally.wrong == []
    assert tally.cases >= 60
    assert tally.accepted >= 0.2
    assert tally.statuses["4xx"] > 0
