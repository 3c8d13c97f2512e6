"""A tiny random model on disk, and one server around it for all tests that do not end it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from serve_world import Server, serving
from tiny import bpe_tokenizer, llama, save
from tokenizer_folder import CHATML


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = bpe_tokenizer()
    save(llama(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=4096), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="session")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(model_folder, tmp_path_factory.mktemp("cache")) as running:
        yield running
