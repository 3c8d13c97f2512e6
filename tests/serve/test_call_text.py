"""Calls in texts: the same pieces however the text is cut, and never a character lost."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenvm.serve.call_text import Argued, Called, CallStyle, CallText, Said

NAMES = ("weather", "now")
WEATHER = '{"name": "weather", "arguments": {"city": "B\\"{ern}", "days": [1, {"a": 2}]}}'
NOW = '{"name": "now", "arguments": {}}'
BACKWARDS = '{"arguments": {"city": "B\\"{ern}", "days": [1, {"a": 2}]}, "name": "weather"}'
ARGUMENTS = {"city": 'B"{ern}', "days": [1, {"a": 2}]}
CASES = [
    (CallStyle.TAGGED, f"<tool_call>\n{WEATHER}\n</tool_call>", "", ["weather"]),
    (
        CallStyle.TAGGED,
        f"Let me look.\n<tool_call>\n{WEATHER}\n</tool_call>\n<tool_call>{NOW}</tool_call>",
        "Let me look.",
        ["weather", "now"],
    ),
    (CallStyle.TAGGED, "a < b, <tool, <tool_call", "a < b, <tool, <tool_call", []),
    (CallStyle.TAGGED, "plain text ", "plain text ", []),
    (CallStyle.TAGGED, "<tool_call>no json", "<tool_call>no json", []),
    (CallStyle.TAGGED, '<tool_call>{"name": "x"}', '<tool_call>{"name": "x"}', []),
    (CallStyle.TAGGED, f"<tool_call>{NOW}</tool_call> and then", " and then", ["now"]),
    (CallStyle.BARE, WEATHER.replace("arguments", "parameters"), "", ["weather"]),
    (CallStyle.BARE, f"<|python_tag|>{WEATHER}; {NOW}", "", ["weather", "now"]),
    (CallStyle.BARE, "It is 5 o'clock {now}", "It is 5 o'clock {now}", []),
    (CallStyle.BARE, '{"colour": "red"}', '{"colour": "red"}', []),
    (CallStyle.BARE, '{"name": "nobody", "parameters": {}}', '{"name": "nobody", "parameters": {}}', []),
    (CallStyle.LISTED, f"[{WEATHER},\n {NOW}]", "", ["weather", "now"]),
    (CallStyle.LISTED, f"[{BACKWARDS}]", "", ["weather"]),
    (CallStyle.LISTED, '[{"name": "now"}]', "", ["now"]),
]  # fmt: skip


def heard(style: CallStyle, parts: list[str]) -> tuple[str, list[str], list[str]]:
    """The text, the names and the arguments of all pieces, which must come in order."""
    calls = CallText(style, NAMES)
    pieces = [piece for part in parts for piece in calls.push(part)] + calls.finish()
    text, names, arguments = "", [], []
    for piece in pieces:
        if isinstance(piece, Said):
            text += piece.text
        elif isinstance(piece, Called):
            assert piece.index == len(names)
            names.append(piece.name)
            arguments.append("")
        else:
            assert piece.index == len(names) - 1
            assert piece.text != ""
            arguments[piece.index] += piece.text
    assert calls.calls == len(names)
    return text, names, arguments


@pytest.mark.parametrize(("style", "given_text", "text", "names"), CASES, ids=lambda one: str(one)[:30])
def test_calls_are_found_and_the_rest_is_text(
    style: CallStyle, given_text: str, text: str, names: list[str]
) -> None:
    said, called, arguments = heard(style, [given_text])
    assert (said.strip(), called) == (text.strip(), names)
    assert [json.loads(one) for one in arguments] == [
        ARGUMENTS if name == "weather" else {} for name in names
    ]
    assert heard(style, list(given_text)) == (said, called, arguments)


@given(st.sampled_from(CASES), st.lists(st.integers(0, 120), max_size=8))
@settings(max_examples=60)
def test_it_does_not_matter_how_the_text_is_cut(case: tuple, cuts: list[int]) -> None:
    style, text = case[0], case[1]
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[begin:end] for begin, end in pairwise(edges)]
    assert heard(style, parts) == heard(style, [text])


def test_arguments_come_while_they_are_written() -> None:
    calls = CallText(CallStyle.TAGGED, NAMES)
    assert calls.push('<tool_call>{"name": "weather", "argum') == []
    assert calls.push('ents": {"ci') == [Called(0, "weather"), Argued(0, '{"ci')]
    assert calls.push('ty": "Bern"}') == [Argued(0, 'ty": "Bern"}')]
    assert calls.push("}</tool_call>") == []
    assert calls.finish() == []


def test_a_call_that_is_cut_off_is_told_as_far_as_it_came() -> None:
    calls = CallText(CallStyle.BARE, NAMES)
    assert calls.push('{"name": "now", "parameters": {"zone": "U') == [
        Called(0, "now"),
        Argued(0, '{"zone": "U'),
    ]
    assert calls.finish() == []


def test_text_before_a_call_is_given_at_once() -> None:
    calls = CallText(CallStyle.TAGGED, NAMES)
    assert calls.push("Hello") == [Said("Hello")]
    assert calls.push(" world<to") == [Said(" world")]
    assert calls.push("p>") == [Said("<top>")]
