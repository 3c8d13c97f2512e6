"""`LLM` takes a folder without a native family as it takes any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from test_borrowed import make

from tokenvm import LLM, MemoryConfig, SamplingParams
from tokenvm.errors import LimitTooSmall

VOCAB_SIZE = 260


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make("Granite", {"vocab_size": VOCAB_SIZE}, tmp_path_factory.mktemp("granite"))
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_texts_of_several_prompts_are_those_of_generate(folder: Path, tmp_path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    prompts = ["Once upon a time there was", "Once upon a time there were two", "No"]
    memory = MemoryConfig(kv_limit="300KB", nvme_path=str(tmp_path), nvme_limit="10MB", block_tokens=16)
    with LLM(folder, memory=memory, dtype="float32", max_tokens_per_forward=16) as llm:
        found = llm.generate(prompts, params, use_tqdm=False)
        ids = [llm.get_tokenizer().encode(text) for text in prompts]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for output, tokens in zip(found, ids, strict=True):
        answer = model.generate(
            torch.tensor([tokens]), do_sample=False, max_new_tokens=10, min_new_tokens=10, pad_token_id=0
        )
        assert list(output.outputs[0].token_ids) == answer[0, len(tokens) :].tolist()


def test_its_weights_count_against_the_limit(folder: Path) -> None:
    with pytest.raises(LimitTooSmall, match="weights, workspace"):
        LLM(folder, memory=MemoryConfig(vram_limit="100KB"))
