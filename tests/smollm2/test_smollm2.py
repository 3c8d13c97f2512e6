"""The real model on three short prompts: as Transformers says, and the same bits with pages on disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenvm.bench.verify_parity import compare_prompts
from tokenvm.bridges.reference import Reference
from tokenvm.config import MemoryConfig
from tokenvm.engine.budget import minimum_kv_bytes
from tokenvm.engine.launch import Settings, needs_of
from tokenvm.llm import LLM
from tokenvm.models.fetch import resolve_model
from tokenvm.models.weights.pack import load_model
from tokenvm.outputs import RequestOutput
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer

PROMPTS = (
    "The capital of France is",
    "We the People of the United States, in Order to form a more perfect Union, establish Justice, insure "
    "domestic Tranquility, provide for the common defence,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
)
TOKENS = 24
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=3)


@pytest.fixture(scope="module")
def folder() -> Path:
    """The model, fetched the first time; where that cannot be, the error says what to do."""
    return resolve_model("smollm2")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Iterator[Reference]:
    reference = Reference(folder)
    yield reference
    reference.end()


def settings(folder: Path, kv_limit: int | str = "auto", **numbers: int) -> Settings:
    disk = "64MB" if kv_limit != "auto" else 0
    memory = MemoryConfig.model_validate({"block_tokens": 16, "kv_limit": kv_limit, "nvme_limit": disk})
    return Settings(memory, folder, max_model_len=128, max_num_seqs=3, **numbers)


def bits(outputs: list[RequestOutput]) -> list[tuple[list[int], object, str]]:
    return [(one.outputs[0].token_ids, one.outputs[0].logprobs, one.outputs[0].text) for one in outputs]


def test_float32_says_what_transformers_says(
    folder: Path, tokenizer: Tokenizer, reference: Reference, tmp_path: Path
) -> None:
    model = load_model(folder, "float32")
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    limit = minimum_kv_bytes(needs_of(model, settings(tmp_path))[0])
    with LLM.from_loaded(model, tokenizer, settings(tmp_path, limit, threads=1)) as llm:
        parities = list(compare_prompts(llm, reference, prompts, TOKENS))
        assert llm.stats()["streamed_pages"] > 0
    assert [(one.problem, one.excused, one.steps) for one in parities] == [("", False, TOKENS)] * 3
    assert max(one.max_difference for one in parities) <= 1e-3


def test_pages_on_disk_and_batch_mates_change_no_bit(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = load_model(folder, "bfloat16")
    with LLM.from_loaded(model, tokenizer, settings(tmp_path, threads=1)) as llm:
        alone = [bits(llm.generate(prompt, GREEDY, use_tqdm=False))[0] for prompt in PROMPTS]
        assert llm.stats()["streamed_pages"] == 0
    assert "Paris" in alone[0][2]
    limit = minimum_kv_bytes(needs_of(model, settings(tmp_path))[0], sequences=3)
    limited = settings(tmp_path, limit, threads=2, max_tokens_per_forward=20)
    with LLM.from_loaded(model, tokenizer, limited) as llm:
        assert bits(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == alone
        stats = llm.stats()
    assert stats["streamed_pages"] > 0
    assert stats["moved_bytes"]["nvme_read"] > 0
    assert stats["tiers"]["device"]["high_water_bytes"] + stats["ring_bytes"] <= limit
