"""docs/models.md says of every architecture that is tried here what becomes of it, and of no other."""

import re
from pathlib import Path

from test_borrowed import BORROWED, REFUSED, architecture

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| (borrowed|refused)", PAGE, re.MULTILINE))


def test_the_table_of_borrowed_models_is_what_the_tests_find() -> None:
    assert {architecture(name): "borrowed" for name in BORROWED} | {
        architecture(name): "refused" for name in REFUSED
    } == ROWS
