"""Every native family gives the logits of its tiny random Hugging Face model, whole and in chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contiguous import ContiguousContext
from fixtures_families import FAMILIES, VOCAB_SIZE

from tokenvm.models.decoder import Activations, Decoder
from tokenvm.models.registry import RECIPES
from tokenvm.models.weights.outline import outline_model
from tokenvm.models.weights.pack import LoadedModel, load_model

TOKENS = torch.randint(3, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(1))


def logits(model: LoadedModel, chunks: list[int]) -> torch.Tensor:
    ctx, begin, parts = ContiguousContext(model), 0, []
    decode = Decoder(model.spec, model.weights.dtype, max(chunks))
    for rows in chunks:
        parts.append(decode.forward(ctx.feed(rows, list(range(rows))), TOKENS[begin : begin + rows]))
        begin += rows
    return torch.cat(parts)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_hugging_face(name: str, tmp_path: Path) -> None:
    reference = FAMILIES[name].make()
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = reference(TOKENS[None]).logits[0]
    model = load_model(tmp_path, "float32")
    whole = logits(model, [70])
    assert expected.std() > 0.5
    assert (whole - expected).abs().max() <= 2e-4 * expected.abs().max()
    assert (logits(model, [1, 30, 39]) - whole).abs().max() <= 2e-4 * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_outline_and_the_buffers_have_the_sizes_of_the_model(name: str, tmp_path: Path) -> None:
    FAMILIES[name].make().save_pretrained(tmp_path)
    model, outlined = load_model(tmp_path), outline_model(tmp_path)
    assert outlined.spec == model.spec
    assert outlined.weights.nbytes == model.weights.nbytes
    buffers = Activations.allocate(model.spec, 5, torch.bfloat16)
    held = sum(getattr(buffers, name).nbytes for name in Activations.__slots__)
    assert held == 5 * Activations.bytes_per_row(model.spec, torch.bfloat16)


def test_every_native_family_is_among_them() -> None:
    tried = {tiny.model.__name__ for tiny in FAMILIES.values()}
    assert tried == {recipe.architecture for recipe in RECIPES}
