"""The façade, its snippets as they were promised, the example, and what is said where a model is not to be had."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import architectures
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import pagedllm
from tokenvm import MemoryConfig, PagedModel, verify_installation
from tokenvm.bridges.paged_model import PagedLlama
from tokenvm.errors import LimitTooSmall, ModelError, RequestError

ROOT = Path(__file__).parents[2]
WORDS = ("page", "disk", "token", "memory")


@pytest.fixture
def folder(tmp_path):
    """A model with a tokenizer of a few words, saved as Transformers does."""
    architectures.model("Llama").save_pretrained(tmp_path)
    words = {word: at for at, word in enumerate((*WORDS, "<unk>"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    return tmp_path


def memory(disk_path, **settings):
    return MemoryConfig(nvme_path=disk_path, nvme_limit="64MB", block_tokens=16, **settings)


def test_the_high_level_interface(folder, disk_path):
    model = PagedModel.from_pretrained(folder, memory_config=memory(disk_path))
    input_ids = torch.randint(3, 97, (1, 30))
    want = architectures.model("Llama").generate(input_ids, max_length=40, do_sample=False)
    assert torch.equal(model.generate(input_ids, max_length=40, temperature=0), want)
    unpatched = architectures.model("Llama")
    torch.manual_seed(3)
    sampled = model.generate(input_ids, max_length=60, temperature=0.7)
    torch.manual_seed(3)
    fresh = unpatched.generate(input_ids, max_length=60, do_sample=True, temperature=0.7)
    assert torch.equal(sampled, fresh)
    model.close()


def test_a_text_is_answered_and_measured(folder, disk_path):
    with PagedLlama.from_pretrained(folder, memory(disk_path)) as model:
        assert isinstance(model.generate("page disk token", max_new_tokens=3, temperature=0), str)
        result = model.generate("page disk token", max_new_tokens=3, temperature=0, measure_memory=True)
    assert result.sequences.shape == (1, 6)
    weights = sum(parameter.nbytes for parameter in model.model.parameters())
    assert result.peak_memory_gb > weights / 1e9
    assert result.tokens_per_second > 0


def test_the_limit_may_change(folder, disk_path):
    model = PagedModel.from_pretrained(folder, memory_config=memory(disk_path))
    model.set_memory_limit("24GB")
    model.set_memory_limit("1MB")
    assert (
        model.generate(torch.randint(3, 97, (1, 60)), max_new_tokens=4, measure_memory=True).peak_memory_gb
        <= 1e-3
    )
    with pytest.raises(LimitTooSmall):
        model.set_memory_limit("10kB")
    assert model.generate(torch.ones(1, 4, dtype=torch.int64), max_new_tokens=2).shape == (1, 6)
    model.close()


def test_a_scope_counts_from_zero_and_gives_everything_back(folder, disk_path):
    model = PagedModel.from_pretrained(folder, memory_config=memory(disk_path))
    with model.memory_scope() as scope:
        assert scope.stats()["steps"] == 0
        model.generate(torch.randint(3, 97, (1, 30)), max_new_tokens=5)
        assert scope.stats()["steps"] == 5
        assert scope.peak_memory_gb > 0
    assert model.stats()["steps"] == 0
    model.close()


def test_pagedllm_is_an_importable_name(disk_path):
    assert sorted(pagedllm.__all__, key=str.lower) == sorted(set(pagedllm.__all__), key=str.lower)
    assert all(hasattr(pagedllm, name) for name in pagedllm.__all__)
    config = pagedllm.PagedLLMConfig(
        vram_size="24GB", host_memory="2MB", nvme_path=disk_path, nvme_limit="64MB", block_tokens=16
    )
    model = pagedllm.enable_paging(architectures.model("Llama"), config)
    assert model.generate(torch.ones(1, 3, dtype=torch.int64), max_length=10).shape == (1, 10)
    pagedllm.disable_paging(model)
    with pagedllm.MemoryManager(config.model_copy(update={"vram_limit": 64 << 20})) as manager:
        address = manager.allocate(5000, pagedllm.MemoryHint.KEEP)
        assert len(manager.ensure_resident(address)) == 1
        manager.deallocate(address)
        assert float((pagedllm.PagedTensor(1000) + 1).sum()) == 1000


def test_an_encoder_decoder_model_is_loaded_by_its_class(tmp_path, disk_path):
    architectures.model("flan-T5").save_pretrained(tmp_path)
    with PagedModel.from_pretrained(tmp_path, memory(disk_path)) as model:
        assert type(model.model).__name__ == "T5ForConditionalGeneration"
        ids = torch.randint(3, 97, (1, 9))
        want = architectures.model("flan-T5").generate(ids, max_new_tokens=5, do_sample=False)
        assert torch.equal(model.generate(ids, max_new_tokens=5, temperature=0), want)
        with pytest.raises(RequestError, match="tokenizer"):
            model.generate("a text")


def test_a_model_that_is_not_to_be_had_says_in_one_line_what_to_set(monkeypatch, tmp_path):
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_TOKEN") as refused:
        PagedModel.from_pretrained("meta-llama/Llama-2-7b-hf")
    assert "\n" not in str(refused.value)
    assert "--hf-token" in str(refused.value)
    with pytest.raises(ModelError, match=r"config\.json") as refused:
        PagedModel.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_installation_is_verified():
    lines = []
    assert verify_installation(lines.append)
    assert [line.split()[1] for line in lines[:3]] == ["ok:"] * 3
    assert "works here" in lines[-1]


def test_the_example_runs(folder, monkeypatch, capsys):
    words = ["--model", str(folder), "--prompt", "page disk token", "--block-tokens", "16", "--benchmark"]
    monkeypatch.setattr(sys, "argv", ["hf_infer.py", *words, "--max-length", "40", "--context-length", "30"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples" / "hf_infer.py"), run_name="__main__")
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("without TokenVM: 10 tokens")
    assert lines[2].startswith("with TokenVM: 10 tokens")
    assert lines[1] == lines[3]
    assert "path kernel" in lines[4]
