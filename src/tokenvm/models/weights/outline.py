"""A model's weights as sizes without bytes: enough to plan its memory before it is loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from tokenvm.kernels.linear import PackedMatrix, packed_bytes
from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.registry import load_spec
from tokenvm.models.spec import ModelSpec
from tokenvm.models.weights.pack import LoadedModel, ModelWeights, resolve_dtype


def outline_model(folder: Path, dtype: str = "auto") -> LoadedModel:
    """Describe the model of a folder from its config.json; its tensors have shapes and no memory (torch's "meta").

    Raises ModelError for a folder that is not supported, ConfigError for an unknown dtype.
    """
    spec, _ = load_spec(folder)
    return outline(spec, resolve_dtype(dtype))


def outline(spec: ModelSpec, dtype: torch.dtype) -> LoadedModel:
    """Describe a model of this spec with weights in `dtype`; no kernel may see them."""
    heads, hidden, inner = spec.attention, spec.hidden, spec.mlp.intermediate
    layers = tuple(
        LayerWeights(
            attn_norm=_vector(hidden),
            qkv=_matrix(heads.qkv_rows, hidden, dtype),
            o=_matrix(hidden, heads.out_columns, dtype),
            mlp_norm=_vector(hidden),
            gate_up=_matrix(2 * inner, hidden, dtype),
            down=_matrix(hidden, inner, dtype),
            qkv_bias=_vector(heads.qkv_rows) if heads.qkv_bias else None,
            o_bias=_vector(hidden) if heads.out_bias else None,
            q_norm=_vector(heads.head_dim) if heads.qk_norm else None,
            k_norm=_vector(heads.head_dim) if heads.qk_norm else None,
            attn_post_norm=_vector(hidden) if spec.norm.sandwich else None,
            mlp_post_norm=_vector(hidden) if spec.norm.sandwich else None,
        )
        for _ in range(spec.layers)
    )
    embedding = _matrix(spec.vocab_size, hidden, dtype)
    head = embedding if spec.tied_embeddings else _matrix(spec.vocab_size, hidden, dtype)
    return LoadedModel(spec, ModelWeights(dtype, layers, EndWeights(embedding, _vector(hidden), head)))


def _matrix(rows: int, columns: int, dtype: torch.dtype) -> PackedMatrix:
    storage = torch.empty(packed_bytes(rows, columns, dtype), dtype=torch.uint8, device="meta")
    return PackedMatrix(rows, columns, dtype, storage, "outline")


def _vector(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.float32, device="meta")
