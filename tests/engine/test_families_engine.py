"""Every native family under KV limits: greedy tokens are those of Transformers, and nobody else changes a bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures_engine import assert_spilled, prompt, running, speak
from fixtures_families import FAMILIES

from tokenvm.bridges.reference import Reference
from tokenvm.models.weights.pack import load_model

LENGTHS = (90, 33, 47)
NEW_TOKENS = 12


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("family")
    FAMILIES[request.param].make().save_pretrained(path)
    return path


def test_paged_greedy_tokens_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    model, reference = load_model(folder, "float32"), Reference(folder)
    with running(model, tmp_path, device_pages=3) as engine:
        (said,) = speak(engine, [prompt(LENGTHS[0])], max_tokens=NEW_TOKENS)
        assert_spilled(engine, model, 3)
    expected = reference.begin(prompt(LENGTHS[0]))
    for token, row in zip(said.tokens, said.rows, strict=True):
        logits = torch.frombuffer(bytearray(row), dtype=torch.float32)
        assert (logits - expected).abs().max() <= 2e-4 * expected.abs().max()
        assert token == int(expected.argmax())
        expected = reference.feed(token)


def test_neither_limits_nor_batch_mates_nor_chunks_change_a_bit(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    prompts = [prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    alone = []
    for ids in prompts:
        with running(model, tmp_path) as engine:
            alone += speak(engine, [ids], max_tokens=NEW_TOKENS)
    with running(model, tmp_path, device_pages=5, max_tokens_per_forward=48) as engine:
        together = speak(engine, prompts, max_tokens=NEW_TOKENS, every_steps=2)
        assert_spilled(engine, model, 5)
    assert together == alone
    assert len({tuple(one.tokens) for one in alone}) == len(alone)
