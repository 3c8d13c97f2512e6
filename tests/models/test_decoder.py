"""The decoder gives the logits of Hugging Face's Llama."""

import dataclasses
from pathlib import Path

import pytest
import torch
from contiguous import ContiguousContext
from tiny import llama, save

from tokenvm.kernels.rows import MatrixRows
from tokenvm.models.decoder import Activations, Decoder
from tokenvm.models.weights.pack import LoadedModel, load_model

SHAPES = {
    "grouped keys, untied": {},
    "tied": {"tie_word_embeddings": True},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as query heads": {"num_key_value_heads": 4},
    "odd sizes": {
        "vocab_size": 101,
        "hidden_size": 54,
        "intermediate_size": 75,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "own head size": {"head_dim": 24},
    "three layers": {"num_hidden_layers": 3},
    "another theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
    "llama3 rope": {
        "head_dim": 64,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}
TOKENS = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save(llama(), tmp_path_factory.mktemp("small")), "float32")


def decoder(model: LoadedModel, rows: int = 40) -> Decoder:
    return Decoder(model.spec, model.weights.dtype, rows)


def logits(model: LoadedModel, chunks: list[int]) -> torch.Tensor:
    ctx, begin, parts, decode = ContiguousContext(model), 0, [], decoder(model)
    for rows in chunks:
        ids = TOKENS[begin : begin + rows]
        parts.append(decode.forward(ctx.feed(rows, list(range(rows))), ids))
        begin += rows
    return torch.cat(parts)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_float32_logits_are_those_of_hugging_face(changes: dict[str, object], tmp_path: Path) -> None:
    reference = llama(**changes)
    with torch.no_grad():
        expected = reference(TOKENS[None]).logits[0]
    found = logits(load_model(save(reference, tmp_path), "float32"), [40])
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() <= 1e-4


def test_bfloat16_logits_are_near_those_of_the_rounded_model(tmp_path: Path) -> None:
    reference = llama().to(torch.bfloat16).to(torch.float32)
    with torch.no_grad():
        expected = reference(TOKENS[None]).logits[0]
    found = logits(load_model(save(reference, tmp_path)), [40])
    assert (found - expected).abs().max() <= 0.03 * expected.abs().max()


@pytest.mark.parametrize(
    "chunks", [[1] * 40, [7, 16, 17], [39, 1]], ids=["one by one", "three", "all but one"]
)
def test_chunks_give_the_logits_of_the_whole(chunks: list[int], small: LoadedModel) -> None:
    assert (logits(small, chunks) - logits(small, [40])).abs().max() <= 1e-4


def test_only_sampled_rows_are_answered_in_the_order_asked(small: LoadedModel) -> None:
    whole = logits(small, [40])
    some = decoder(small).forward(ContiguousContext(small).feed(40, [39, 3, 3]), TOKENS)
    assert torch.equal(some, whole[[39, 3, 3]])


def test_no_sampled_row_gives_no_logits(small: LoadedModel) -> None:
    ctx = ContiguousContext(small)
    decode = decoder(small)
    assert decode.forward(ctx.feed(39, []), TOKENS[:39]).shape == (0, 97)
    last = decode.forward(ctx.feed(1, [0]), TOKENS[39:])
    assert (last - logits(small, [40])[39:]).abs().max() <= 1e-4


def test_layers_are_borrowed_once_each_in_order(small: LoadedModel) -> None:
    ctx = ContiguousContext(small)
    decoder(small).forward(ctx.feed(2, [1]), TOKENS[:2])
    assert ctx.lent == [0, 1]


def test_what_a_buffer_held_changes_nothing(small: LoadedModel) -> None:
    decode = decoder(small, 64)
    for buffer in buffers(decode.buffers):
        fill_nan(buffer)
    ctx = ContiguousContext(small).feed(40, list(range(40)))
    assert torch.equal(decode.forward(ctx, TOKENS), logits(small, [40]))


def test_other_weights_lent_in_a_layers_place_are_used(small: LoadedModel) -> None:
    decode, twice = decoder(small), dataclasses.replace(small.weights.layers[1], mlp_norm=torch.zeros(64))
    first = decode.forward(ContiguousContext(small).feed(40, [39]), TOKENS)
    lent = dataclasses.replace(small.weights, layers=(small.weights.layers[0], twice))
    other = LoadedModel(small.spec, lent)
    found = decode.forward(ContiguousContext(other).feed(40, [39]), TOKENS)
    assert torch.equal(found, logits(other, [40])[39:])
    assert not torch.equal(found, first)
    assert torch.equal(decode.forward(ContiguousContext(small).feed(40, [39]), TOKENS), first)


def test_more_rows_than_buffers_are_refused(small: LoadedModel) -> None:
    with pytest.raises(ValueError, match="40 rows do not fit buffers of 39"):
        decoder(small, 39).forward(ContiguousContext(small).feed(40, [39]), TOKENS)


def buffers(activations: Activations) -> list[torch.Tensor | MatrixRows]:
    return [getattr(activations, field.name) for field in dataclasses.fields(activations)]


def fill_nan(buffer: torch.Tensor | MatrixRows) -> None:
    if isinstance(buffer, MatrixRows):
        buffer.storage.fill_(255)
    else:
        buffer.fill_(torch.nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_take_the_bytes_they_say(dtype: torch.dtype, small: LoadedModel) -> None:
    kept = buffers(Activations.allocate(small.spec, 16, dtype))
    assert sum(buffer.nbytes for buffer in kept) == 16 * Activations.bytes_per_row(small.spec, dtype)
