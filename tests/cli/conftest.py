"""A tiny random model on disk that the command line can run, with a tokenizer of its own."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from tiny import CHAT_TEMPLATE, bpe_tokenizer, llama, save

from tokenvm import cli

MAX_MODEL_LEN = 20_000


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = bpe_tokenizer()
    save(llama(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=MAX_MODEL_LEN), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    return folder


@pytest.fixture
def tokenvm(monkeypatch, tmp_path, capsys):
    """Run a command line in a world of its own; return (exit code, standard output, standard error)."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TOKENVM_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["tokenvm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run
