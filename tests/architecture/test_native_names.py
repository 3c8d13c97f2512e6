"""Two native functions of one name would overload each other without a word."""

import re
from collections import Counter
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "csrc" / "src"


def module_names(text):
    return re.findall(r'\b(?:m|module)\s*\.def\(\s*"(\w+)"', text)


def repeated(texts):
    counts = Counter(name for text in texts for name in module_names(text))
    return sorted(name for name, count in counts.items() if count > 1)


def test_every_native_function_has_a_name_of_its_own():
    texts = [path.read_text() for path in sorted(SOURCES.glob("bindings*.cpp"))]
    assert sum(len(module_names(text)) for text in texts) > 20
    assert repeated(texts) == []


def test_the_check_can_fail():
    assert repeated(['m.def("fill", f)', 'module.def("fill", g); m.def("copy", h)']) == ["fill"]
