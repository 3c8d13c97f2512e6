"""Architectures without a native family: Transformers' modules in the engine, with paged attention."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures_engine import assert_spilled, prompt, running, speak
from fixtures_families import COMMON, FAMILIES

from tokenvm.borrowed.load import load_any_model
from tokenvm.bridges.reference import Reference
from tokenvm.errors import ModelError, UnsupportedModel
from tokenvm.models.decoder import Decoder
from tokenvm.models.weights.pack import load_model

NEW_TOKENS = 12
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
BORROWED: Mapping[str, Mapping[str, Any]] = {
    "GPT2": {"n_positions": 512, "n_embd": 64, "n_layer": 3, "n_head": 4},
    "GPTNeoX": {"rotary_pct": 0.25},
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "Phi": {"partial_rotary_factor": 0.5},
    "Starcoder2": {"sliding_window": 24},
    "Granite": {"attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "Olmo2": {},
    "Glm": {"head_dim": 16},
    "Cohere2": {
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "SmolLM3": {"no_rope_layers": [1, 1, 0]},
    "Mixtral": {**MOE, "sliding_window": None},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16},
}
WINDOW = {"sliding_window": 24, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
}
REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "Gemma2": ({"head_dim": 16}, "needs softcap in its attention"),
    "GptOss": ({**MOE, "head_dim": 16}, "needs s_aux in its attention"),
    "Falcon": ({}, "cannot have its attention done elsewhere"),
    "Mamba": ({"state_size": 8}, "no decoder that keeps keys and values alone"),
}


def architecture(name: str) -> str:
    """What a config.json calls it."""
    return name + ("LMHeadModel" if name == "GPT2" else "ForCausalLM")


def make(name: str, more: Mapping[str, Any], folder: Path) -> Path:
    """Write a tiny random model: float32, with random biases and norms."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **more})
    model = getattr(transformers, architecture(name))(config).eval()
    for key, weight in model.named_parameters():
        if key.endswith("bias"):
            weight.data.uniform_(-0.5, 0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=BORROWED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(request.param, BORROWED[request.param], tmp_path_factory.mktemp("borrowed"))


def test_greedy_tokens_under_a_limit_and_in_a_crowd_are_those_of_transformers(
    folder: Path, tmp_path: Path
) -> None:
    model, reference = load_any_model(folder, "float32"), Reference(folder)
    prompts = [prompt(90), prompt(90)[:64] + prompt(20, 1), prompt(33, 2)]
    with running(model, tmp_path, device_pages=5, max_tokens_per_forward=48) as engine:
        several = speak(engine, prompts, max_tokens=NEW_TOKENS, every_steps=5)
        assert_spilled(engine, model, 5)
        assert sum(engine.stats()["prefix_cache"]["hit_tokens"].values()) > 0
    for said, ids in zip(several, prompts, strict=True):
        expected = reference.begin(ids)
        for token, row in zip(said.tokens, said.rows, strict=True):
            logits = torch.frombuffer(bytearray(row), dtype=torch.float32)
            assert (logits - expected).abs().max() <= 1e-3 * expected.abs().max()
            assert token == int(expected.argmax())
            expected = reference.feed(token)


@pytest.mark.parametrize("name", ["GPT2", "Granite", "Cohere2"])
def test_bfloat16_logits_are_near_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = make(name, BORROWED[name], tmp_path / "model")
    model, reference = load_any_model(folder), Reference(folder)
    assert model.weights.dtype is torch.bfloat16
    with running(model, tmp_path, device_pages=3) as engine:
        (said,) = speak(engine, [prompt(70)], max_tokens=1)
    expected = reference.begin(prompt(70))
    logits = torch.frombuffer(bytearray(said.rows[0]), dtype=torch.float32)
    assert (logits - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.parametrize("name", REFUSED)
def test_what_attends_in_another_way_is_refused_by_name(name: str, tmp_path: Path) -> None:
    more, said = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=said):
        load_any_model(make(name, more, tmp_path))


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("Qwen2Moe", {**WINDOW, "use_sliding_window": True}, "window that its attention does not ask for"),
        ("Phimoe", {**MOE, **WINDOW}, "window that its attention does not ask for"),
        ("Olmo2", {"rope_parameters": LONGROPE}, "rope of type longrope"),
    ],
)
def test_what_a_short_trial_does_not_show_is_refused(
    name: str, more: Mapping[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        load_any_model(make(name, more, tmp_path))


def test_a_window_that_is_not_used_is_no_reason(tmp_path: Path) -> None:
    assert load_any_model(make("Qwen2Moe", WINDOW, tmp_path)).spec.attention.window == 0


def test_a_native_family_is_preferred(tmp_path: Path) -> None:
    FAMILIES["qwen3"].make().save_pretrained(tmp_path)
    assert load_any_model(tmp_path).make_decoder is Decoder


def test_what_a_native_family_refuses_is_borrowed(tmp_path: Path) -> None:
    FAMILIES["llama"].make(mlp_bias=True).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="mlp_bias"):
        load_model(tmp_path)
    model = load_any_model(tmp_path, "bfloat16")
    assert model.spec.architecture == "LlamaForCausalLM"
    assert model.weights.nbytes == sum(tensor.nbytes for tensor in model.weights.borrowed)


def test_without_transformers_the_error_says_why_and_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("Olmo2", {}, tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UnsupportedModel, match=r"'Olmo2ForCausalLM'.* no native family.*pip install \"tokenvm\[verify\]\""
    ):
        load_any_model(tmp_path)


def test_a_folder_that_transformers_cannot_read_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Unheard"], "model_type": "unheard"}')
    with pytest.raises(ModelError, match="nor can Transformers read"):
        load_any_model(tmp_path)
