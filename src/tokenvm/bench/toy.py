"""A tiny random Llama in memory: for tests, and for benchmarks of memory rather than of models."""

from __future__ import annotations

import torch

from tokenvm.kernels.linear import PackedMatrix, pack
from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.spec import AttentionSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec
from tokenvm.models.weights.pack import LoadedModel, ModelWeights

VOCAB_SIZE = 97


def tiny_spec(layers: int = 3, wide: bool = False) -> ModelSpec:
    """Two query heads to each key head, heads of 32, pages of 16 tokens and 4 KiB parts (bf16); 32 KiB if `wide`."""
    heads, head_dim = (8, 64) if wide else (2, 32)
    return ModelSpec(
        architecture="LlamaForCausalLM",
        layers=layers,
        hidden=64,
        vocab_size=VOCAB_SIZE,
        max_model_len=512,
        attention=AttentionSpec(q_heads=2 * heads, kv_heads=heads, head_dim=head_dim, scale=head_dim**-0.5),
        rope=RopeSpec(theta=10_000.0),
        mlp=MlpSpec(intermediate=96),
        norm=NormSpec(eps=1e-5),
        tied_embeddings=False,
        eos_token_ids=(2,),
        bos_token_ids=(1,),
    )


def tiny_model(dtype: torch.dtype = torch.bfloat16, layers: int = 3, wide: bool = False) -> LoadedModel:
    """The same random weights every time; attention reaches far back, so that a wrong page changes the tokens."""
    spec = tiny_spec(layers, wide)
    source = torch.Generator().manual_seed(11)

    def matrix(rows: int, columns: int, size: float = 1.0) -> PackedMatrix:
        return pack((torch.randn(rows, columns, generator=source) * size * columns**-0.5).to(dtype))

    def norm() -> torch.Tensor:
        return torch.rand(spec.hidden, generator=source) + 0.5

    hidden, heads, inner = spec.hidden, spec.attention, spec.mlp.intermediate
    blocks = tuple(
        LayerWeights(
            attn_norm=norm(),
            qkv=matrix(heads.qkv_rows, hidden, 1.5),
            o=matrix(hidden, heads.out_columns, 3.0),
            mlp_norm=norm(),
            gate_up=matrix(2 * inner, hidden),
            down=matrix(hidden, inner),
        )
        for _ in range(layers)
    )
    ends = EndWeights(matrix(VOCAB_SIZE, hidden, 8.0), norm(), matrix(VOCAB_SIZE, hidden, 4.0))
    return LoadedModel(spec, ModelWeights(dtype, blocks, ends))
