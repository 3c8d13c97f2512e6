"""The trial finds out models whose attention is not what ours would give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from fixtures_families import FAMILIES

from tokenvm.borrowed.attention import NAME, attention
from tokenvm.borrowed.trial import tried
from tokenvm.errors import UnsupportedModel


@pytest.fixture
def module() -> Any:
    transformers.AttentionInterface.register(NAME, attention)
    return FAMILIES["gemma3"].make()


def trial(module: Any) -> list[Any]:
    return tried(module, "Gemma", "eager", NAME)


def test_it_says_what_every_layer_asks_for(module: Any) -> None:
    shapes = trial(module)
    assert [shape.window for shape in shapes] == [24, 0, 24]
    assert {(shape.q_heads, shape.kv_heads, shape.head_dim, shape.scale) for shape in shapes} == {
        (4, 2, 32, 24**-0.5)
    }


def _hide_one_layer(module: Any) -> None:
    layer = module.model.layers[1].self_attn
    layer.forward = lambda hidden_states, **_: (hidden_states, None)


def _attend_twice(module: Any) -> None:
    module.model.layers[1].self_attn.layer_idx = 0


def _look_ahead(module: Any) -> None:
    module.model.layers[0].self_attn.is_causal = False


def _drop(module: Any) -> None:
    module.train()
    module.model.layers[2].self_attn.attention_dropout = 0.5


def _sharpen(module: Any) -> None:
    """A temperature that only one of the two attentions sees."""
    layer = module.model.layers[2].self_attn
    plain = layer.forward

    def forward(hidden_states: torch.Tensor, **more: Any) -> Any:
        layer.scaling = 3.0 if "tokenvm_pass" in more else 1.0
        return plain(hidden_states=hidden_states, **more)

    layer.forward = forward


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_hide_one_layer, "2 of 3 layers attend by the attention interface"),
        (_attend_twice, "layer 0 attends twice"),
        (_look_ahead, "attention to later tokens"),
        (_drop, "dropout"),
        (_sharpen, "its logits differ by"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_would_be_wrong_is_refused(spoil: Callable[[Any], None], said: str, module: Any) -> None:
    spoil(module)
    with pytest.raises(UnsupportedModel, match=said):
        trial(module)


def test_modules_that_keep_arguments_to_themselves_are_refused(module: Any) -> None:
    layer = module.model.layers[0].self_attn
    q = torch.zeros(1, 4, 3, 32)
    with pytest.raises(UnsupportedModel, match="does not pass keyword arguments on"):
        attention(layer, q, q[:, :2], q[:, :2], None)


def test_values_of_another_size_are_refused(module: Any) -> None:
    layer = module.model.layers[0].self_attn
    q = torch.zeros(1, 4, 3, 32)
    with pytest.raises(UnsupportedModel, match="keys of 32 and values of 16 dimensions"):
        attention(layer, q, q[:, :2], q[:, :2, :, :16], None)
