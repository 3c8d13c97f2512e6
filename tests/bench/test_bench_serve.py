"""A crowd against a real server of a tiny model: every answer whole, and what `LLM.generate` says."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenvm.bench.stream_client import hear_all
from tokenvm.cli import app

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from tiny import bpe_tokenizer, llama, save


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, tokenizer = tmp_path / "model", bpe_tokenizer()
    save(llama(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=512), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    monkeypatch.setenv("TOKENVM_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_crowd_is_served_and_says_what_llm_says(model_folder: Path) -> None:
    words = ["--clients=12", "--prompt=20", "--tokens=8", "--rounds=1", "--threads=1", "--json"]
    result = CliRunner().invoke(app, ["bench", "serve", f"--model={model_folder}", *words])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output.splitlines()[-1])
    assert (figures["clients"], figures["failed"], figures["checked"], figures["different"]) == (12, 0, 12, 0)
    waits = figures["waits"]
    assert waits["first token"]["p50_ms"] <= waits["first token"]["p99_ms"] <= waits["whole answer"]["p99_ms"]
    assert set(figures["peak_bytes"]) == {"server", "engine"}


def test_a_client_without_a_server_says_so() -> None:
    (heard,) = hear_all("http://127.0.0.1:9", [{"prompt": [1], "stream": True}])
    assert heard.problem
    assert heard.tokens == []
