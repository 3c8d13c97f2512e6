"""The decoder gives the logits of Hugging Face's Llama."""

from pathlib import Path

import pytest
import torch
from contiguous import ContiguousContext
from tiny import llama, save

from tokenvm.models.decoder import Activations, forward
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


def logits(model: LoadedModel, chunks: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    ctx, begin, parts = ContiguousContext(model), 0, []
    for rows in chunks:
        ids = TOKENS[begin : begin + rows]
        parts.append(forward(model.spec, ctx.feed(rows, list(range(rows))), ids, dtype))
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
    found = logits(load_model(save(reference, tmp_path)), [40], torch.bfloat16)
    assert (found - expected).abs().max() <= 0.03 * expected.abs().max()


@pytest.mark.parametrize(
    "chunks", [[1] * 40, [7, 16, 17], [39, 1]], ids=["one by one", "three", "all but one"]
)
def test_chunks_give_the_logits_of_the_whole(chunks: list[int], small: LoadedModel) -> None:
    assert (logits(small, chunks) - logits(small, [40])).abs().max() <= 1e-4


def test_only_sampled_rows_are_answered_in_the_order_asked(small: LoadedModel) -> None:
    whole = logits(small, [40])
    some = forward(small.spec, ContiguousContext(small).feed(40, [39, 3, 3]), TOKENS, torch.float32)
    assert torch.equal(some, whole[[39, 3, 3]])


def test_no_sampled_row_gives_no_logits(small: LoadedModel) -> None:
    ctx = ContiguousContext(small)
    assert forward(small.spec, ctx.feed(39, []), TOKENS[:39], torch.float32).shape == (0, 97)
    last = forward(small.spec, ctx.feed(1, [0]), TOKENS[39:], torch.float32)
    assert (last - logits(small, [40])[39:]).abs().max() <= 1e-4


def test_layers_are_borrowed_once_each_in_order(small: LoadedModel) -> None:
    ctx = ContiguousContext(small)
    forward(small.spec, ctx.feed(2, [1]), TOKENS[:2], torch.float32)
    assert ctx.lent == [0, 1]


def test_reused_activations_change_nothing(small: LoadedModel) -> None:
    kept = Activations.allocate(small.spec, 64, torch.float32)
    for buffer in (kept.hidden, kept.delta, kept.normed, kept.qkv, kept.gate_up, kept.gated):
        buffer.fill_(torch.nan)
    ctx = ContiguousContext(small).feed(40, list(range(40)))
    assert torch.equal(forward(small.spec, ctx, TOKENS, torch.float32, kept), logits(small, [40]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_take_the_bytes_they_say(dtype: torch.dtype, small: LoadedModel) -> None:
    kept = Activations.allocate(small.spec, 5, dtype)
    buffers = (kept.hidden, kept.delta, kept.normed, kept.qkv, kept.gate_up, kept.gated)
    assert kept.capacity == 5
    assert sum(buffer.nbytes for buffer in buffers) == 5 * Activations.bytes_per_row(small.spec, dtype)
