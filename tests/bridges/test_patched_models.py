"""Many architectures, patched: the same tokens as a fresh, unpatched copy, on tiers that force every path."""

from __future__ import annotations

import re
from pathlib import Path

import architectures
import pytest
import torch

from tokenvm.bridges.attention import register
from tokenvm.bridges.probe import probe

DOCUMENT = Path(__file__).parents[2] / "docs" / "huggingface.md"
DETAILS = {"output_logits": True, "return_dict_in_generate": True}


def prompt(rows, tokens, seed=1):
    return torch.randint(3, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", architectures.MODELS)
def test_greedy_tokens_and_logits_are_those_of_the_unpatched_model(name, page):
    want = architectures.model(name).generate(prompt(1, 66), max_new_tokens=12, do_sample=False, **DETAILS)
    model = page(architectures.model(name), 3)
    got = model.generate(prompt(1, 66), max_new_tokens=12, do_sample=False, **DETAILS)
    assert got.sequences.tolist() == want.sequences.tolist()
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-3, atol=1e-3)
    pager = model.tokenvm
    assert pager.store.geometry.block_tokens == 16
    found = pager.stats()["encoder"] if pager.shape.cross else pager.stats()
    assert found["streamed_pages"] > 0
    assert found["moved_bytes"]["nvme_write"] > 0
    assert found["moved_bytes"]["nvme_read"] > 0


@pytest.mark.parametrize("name", architectures.MODELS)
def test_beams_and_padded_batches_give_the_tokens_of_the_unpatched_model(name, page):
    padded = prompt(3, 40)
    mask = torch.ones_like(padded)
    mask[0, :19], mask[1, :5] = 0, 0
    padded[mask == 0] = 0
    fresh, model = architectures.model(name), page(architectures.model(name), 8)
    beams = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False}
    assert model.generate(prompt(1, 40), **beams).tolist() == fresh.generate(prompt(1, 40), **beams).tolist()
    batch = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert model.generate(padded, **batch).tolist() == fresh.generate(padded, **batch).tolist()
    found = model.tokenvm.stats()
    streamed = found["encoder"] if model.tokenvm.shape.cross else found
    assert streamed["streamed_pages"] > 0
    assert_nothing_is_left(model)


def assert_nothing_is_left(model):
    for store in model.tokenvm._stores:
        store.vm.finish_transfers()
        store.kv.check()
        assert [tier["used_bytes"] for tier in store.stats()["tiers"].values()] == [0, 0, 0]


def test_the_table_of_architectures_is_true():
    register()
    rows = re.findall(r"^\| (\S.*?) \| (kernel|gather) \| (.*?) \|$", DOCUMENT.read_text(), re.MULTILINE)
    shapes = {name: probe(architectures.model(name)) for name in architectures.MODELS}
    want = [(name, "gather" if shape.own else "kernel", shape.own) for name, shape in shapes.items()]
    assert rows == want
