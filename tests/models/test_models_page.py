"""docs/models.md names every native family, and no other."""

import re
from pathlib import Path

from tokenvm.models.registry import RECIPES
from tokenvm.models.weights.gguf_families import GGUF_FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
ROWS = re.findall(r"^\| `(\w+For(?:CausalLM|ConditionalGeneration))` \| (?:`(\w+)`|none)", PAGE, re.MULTILINE)


def test_the_table_of_native_families_is_that_of_the_registry() -> None:
    assert [name for name, _ in ROWS] == [recipe.architecture for recipe in RECIPES]


def test_the_table_says_which_gguf_files_are_read() -> None:
    written = {name: kind for name, kind in ROWS if kind}
    assert written == {family.recipe.architecture: family.architecture for family in GGUF_FAMILIES}
