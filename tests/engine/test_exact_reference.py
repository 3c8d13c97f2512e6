"""A tiny model saved as Hugging Face saves it: paged generation in float32 against Transformers, step by step."""

import sys
from pathlib import Path

import pytest
import torch
from fixtures_engine import assert_spilled, prompt, running, speak
from transformers import LlamaConfig, LlamaForCausalLM

from tokenvm.bridges.reference import Reference
from tokenvm.errors import ConfigError, ModelError
from tokenvm.models.weights.pack import load_model

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).eval().save_pretrained(path)
    return path


@pytest.mark.parametrize("length", [1, 15, 16, 17, 130])
def test_paged_logits_are_those_of_transformers(length: int, folder: Path, tmp_path: Path) -> None:
    model, reference = load_model(folder, "float32"), Reference(folder)
    with running(model, tmp_path, device_pages=3) as engine:
        (said,) = speak(engine, [prompt(length)], max_tokens=50)
        assert_spilled(engine, model, 3)
    expected = reference.begin(prompt(length))
    assert expected.std() > 0.5
    for token, row in zip(said.tokens, said.rows, strict=True):
        logits = torch.frombuffer(bytearray(row), dtype=torch.float32)
        assert (logits - expected).abs().max() <= TOLERANCE
        assert token == int(expected.argmax())
        expected = reference.feed(token)


def test_a_reference_starts_anew_with_each_prompt(folder: Path) -> None:
    reference = Reference(folder)
    first = reference.begin(prompt(9))
    reference.feed(5)
    assert torch.equal(reference.begin(prompt(9)), first)


def test_without_transformers_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r'pip install "tokenvm\[verify\]"'):
        Reference(folder)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pass a Hugging Face folder"):
        Reference(tmp_path)
