"""Random tests draw the same examples every time and have no deadline; the tokenizer is that of the models' tests."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from tiny import bpe_tokenizer

from tokenvm.tokenizer import Tokenizer

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """All bytes, a few merges ("hello", " wo"), three special tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe_tokenizer().save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)
