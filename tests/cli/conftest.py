"""A tiny random model on disk that the command line can run, with a tokenizer of its own."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from tiny import CHAT_TEMPLATE, bpe_tokenizer, llama, save

MAX_MODEL_LEN = 20_000


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = bpe_tokenizer()
    save(llama(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=MAX_MODEL_LEN), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    return folder
