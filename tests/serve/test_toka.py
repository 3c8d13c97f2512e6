"""Tokasaurus' own examples, and what must not pass through."""

import shlex
import sys

import pytest

from tokenvm import cli, cli_toka
from tokenvm.errors import ConfigError
from tokenvm.serve.toka import read_value, translate


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("model=meta-llama/Llama-3.2-1B-Instruct", "serve meta-llama/Llama-3.2-1B-Instruct"),
        ("model=m kv_cache_num_tokens='(512 * 1024)'", "serve m --kv-cache-num-tokens 524288"),
        ("model=m tokenizer=t port=8000 .uvsh", "serve m --no-log-requests --tokenizer t --port 8000"),
        ("model=m max_seqs_per_forward=64 dp_size=1", "serve m --max-num-seqs 64"),
        ("model=m page_size=32 tokenizer=None", "serve m --block-tokens 32"),
        (
            "ping prompt='tell me a joke' max_tokens=256 chat=True",
            "ping --chat --max-tokens 256 -- 'tell me a joke'",
        ),
        ("ping prompt=-v chat=F hide=T model=", "ping --hide -- -v"),
    ],
)
def test_examples_become_our_commands(words: str, line: str) -> None:
    assert translate(shlex.split(words))[0] == shlex.split(line)


def test_keys_that_change_nothing_are_named() -> None:
    line, remarks = translate(["model=m", "use_hydragen=T", "torch_compile=F"])
    assert line == ["serve", "m"]
    assert [remark.split()[0] for remark in remarks] == ["use_hydragen", "torch_compile"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "needs a model"),
        (["model=m", "tp_size=2"], "tp_size=2"),
        (["model=m", "kv_cache_size_num_tokens=5"], "no key 'kv_cache_size_num_tokens'"),
        (["model=m", "verbose"], "key=value"),
        (["model=m", "trust_remote_code=T"], "trust_remote_code"),
        (["ping"], "needs a prompt"),
        (["ping", "prompt=x", "colour=red"], "'colour'"),
    ],
)
def test_what_is_not_possible_is_refused_by_name(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        translate(words)


def test_values_are_read_and_never_run() -> None:
    texts = ("T", "F", "None", "(512*1024)", "(2 * (3 + 4) // 2)", "-5", "a b", "(-(2))", "(1/2)")
    assert [read_value(text) for text in texts] == [True, False, None, 524288, 7, "-5", "a b", -2, 0.5]


@pytest.mark.parametrize(
    "text",
    ["(__import__('os'))", "(9**9**9)", "(1/0)", "(f(1))", "(1", "()", "(1 if 1 else 2)", f"({'1+' * 200}1)"],
)
def test_only_arithmetic_is_read(text: str) -> None:
    if text == "(1":
        assert read_value(text) == text
        return
    with pytest.raises(ConfigError, match="no arithmetic"):
        read_value(text)


def test_the_command_runs_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    monkeypatch.setattr(cli, "main", lambda: seen.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["toka", "model=m", "use_hydragen=T"])
    cli_toka.main()
    assert seen == [["serve", "m"]]
    assert "use_hydragen changes nothing" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["toka", "model=m", "pp_size=2"])
    with pytest.raises(SystemExit, match="2"):
        cli_toka.main()
