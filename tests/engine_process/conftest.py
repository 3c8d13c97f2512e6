"""A tiny random model on disk, and one AsyncLLM around it for each module."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from fixtures_async import ARGUMENTS, Run, loop
from tiny import bpe_tokenizer, llama, save

from tokenvm import LLM, AsyncLLM


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = bpe_tokenizer()
    save(llama(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=4096), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with loop() as run:
        yield run


@pytest.fixture(scope="module")
def engine(run: Run, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncLLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENVM_CACHE", str(tmp_path_factory.mktemp("cache")))
        llm = run(AsyncLLM.start(model_folder, **ARGUMENTS))
    yield llm
    run(llm.shutdown())


@pytest.fixture(scope="module")
def twin(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The same model in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENVM_CACHE", str(tmp_path_factory.mktemp("cache")))
        with LLM(model_folder, **ARGUMENTS) as llm:
            yield llm
