"""The rotary table is bit for bit that of Hugging Face."""

import pytest
import torch
from tiny import CONFIG
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tokenvm.models.families.llama import LLAMA
from tokenvm.models.rope import cos_sin

KINDS = [
    {"rope_type": "default", "rope_theta": 100000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
]


@pytest.mark.parametrize("rope", KINDS, ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize("head_dim", [16, 18, 64, 128])
def test_table_is_that_of_hugging_face(rope: dict[str, object], head_dim: int) -> None:
    changes = {"rope_parameters": rope, "head_dim": head_dim}
    cos, sin = LlamaRotaryEmbedding(LlamaConfig(**CONFIG | changes))(torch.empty(0), torch.arange(300)[None])
    spec = LLAMA.spec_from_config(CONFIG | changes, "config.json")
    half = head_dim // 2
    assert torch.equal(
        cos_sin(spec.rope, head_dim, 300), torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=1)
    )
