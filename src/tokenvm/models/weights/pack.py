"""From a model folder to weights packed for the kernels, tensor by tensor, never two copies of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from tokenvm.errors import ConfigError
from tokenvm.kernels.linear import PackedMatrix, pack
from tokenvm.kernels.weight_memory import WeightMemory
from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.decoder import Decoder, Forward
from tokenvm.models.registry import Family, load_spec
from tokenvm.models.rope import rows_of_head
from tokenvm.models.spec import ModelSpec
from tokenvm.models.weights.reader import Checkpoint


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All weights of a model in `dtype` (norms in fp32). `borrowed` are those that another library's modules hold."""

    dtype: torch.dtype
    layers: tuple[LayerWeights, ...]
    ends: EndWeights
    borrowed: tuple[torch.Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of memory the weights take; a tied head counts once."""
        distinct = {id(part): part for part in _parts(self)}
        return sum(part.nbytes for part in distinct.values())


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run. `make_decoder` gets spec, dtype and the most rows that a step has."""

    spec: ModelSpec
    weights: ModelWeights
    make_decoder: Callable[[ModelSpec, torch.dtype, int], Forward] = Decoder


def resolve_dtype(name: str) -> torch.dtype:
    """Turn "auto", "bfloat16" or "float32" into a dtype; auto is bfloat16. Raises ConfigError for others."""
    known = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if name not in known:
        raise ConfigError(f"dtype={name!r} is not available: use one of {', '.join(map(repr, known))}")
    return known[name]


def load_model(folder: Path, dtype: str = "auto") -> LoadedModel:
    """Read, check and pack the weights of a Hugging Face folder.

    Raises ModelError for a folder that is damaged or not supported, ConfigError for an unknown dtype.
    """
    target = resolve_dtype(dtype)
    spec, family = load_spec(folder)
    memory = WeightMemory()
    with Checkpoint(folder) as checkpoint:
        checkpoint.check(family.tensor_shapes(spec), lambda name: family.is_ignorable(name, spec))
        layers = tuple(
            _layer(checkpoint, memory, family, spec, layer, target) for layer in range(spec.layers)
        )
        return LoadedModel(
            spec, ModelWeights(target, layers, _ends(checkpoint, memory, family, spec, target))
        )


def _layer(
    checkpoint: Checkpoint,
    memory: WeightMemory,
    family: Family,
    spec: ModelSpec,
    layer: int,
    dtype: torch.dtype,
) -> LayerWeights:
    names, rows = family.layer_tensors(spec, layer), _row_order(spec, layer)

    def norm(name: str) -> torch.Tensor:
        return _vector(checkpoint, (name,)) + spec.norm.offset

    return LayerWeights(
        attn_norm=norm(names.attn_norm),
        qkv=_matrix(checkpoint, memory, names.qkv, dtype, rows),
        o=_matrix(checkpoint, memory, (names.o,), dtype),
        mlp_norm=norm(names.mlp_norm),
        gate_up=_matrix(checkpoint, memory, names.gate_up, dtype),
        down=_matrix(checkpoint, memory, (names.down,), dtype),
        qkv_bias=_vector(checkpoint, names.qkv_bias)[rows].contiguous() if names.qkv_bias else None,
        o_bias=_vector(checkpoint, (names.o_bias,)) if names.o_bias else None,
        q_norm=norm(names.q_norm)[_head_order(spec, layer)].contiguous() if names.q_norm else None,
        k_norm=norm(names.k_norm)[_head_order(spec, layer)].contiguous() if names.k_norm else None,
        attn_post_norm=norm(names.attn_post_norm) if names.attn_post_norm else None,
        mlp_post_norm=norm(names.mlp_post_norm) if names.mlp_post_norm else None,
    )


def _head_order(spec: ModelSpec, layer: int) -> torch.Tensor:
    return rows_of_head(spec.rope_of(layer), spec.attention.head_dim)


def _row_order(spec: ModelSpec, layer: int) -> torch.Tensor:
    """The order of the rows of q, k, v in which pairs that rotate together lie half a head apart: int64 [qkv_rows]."""
    heads = spec.attention
    rows = torch.arange(heads.qkv_rows).view(-1, heads.head_dim)
    turned = rows[: heads.q_heads + heads.kv_heads, _head_order(spec, layer)]
    return torch.cat((turned, rows[heads.q_heads + heads.kv_heads :])).flatten()


def _ends(
    checkpoint: Checkpoint, memory: WeightMemory, family: Family, spec: ModelSpec, dtype: torch.dtype
) -> EndWeights:
    names = family.end_tensors(spec)
    embedding = _matrix(checkpoint, memory, (names.embedding,), dtype)
    tied = names.lm_head == names.embedding
    lm_head = embedding if tied else _matrix(checkpoint, memory, (names.lm_head,), dtype)
    return EndWeights(embedding, _vector(checkpoint, (names.final_norm,)) + spec.norm.offset, lm_head)


def _matrix(
    checkpoint: Checkpoint,
    memory: WeightMemory,
    names: tuple[str, ...],
    dtype: torch.dtype,
    rows: torch.Tensor | None = None,
) -> PackedMatrix:
    """Stack and pack; `rows` is the order to put the rows into."""
    parts = [checkpoint.read(name).to(dtype) for name in names]
    whole = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
    if rows is not None and bool((rows[1:] < rows[:-1]).any()):
        whole = whole[rows]
    return pack(whole, memory)


def _vector(checkpoint: Checkpoint, names: tuple[str, ...]) -> torch.Tensor:
    """Copy, so that the file can be closed."""
    parts = [checkpoint.read(name).to(torch.float32, copy=True) for name in names]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(weights: ModelWeights) -> Iterable[torch.Tensor | PackedMatrix]:
    for layer in weights.layers:
        yield from layer.matrices
        yield from layer.vectors
    yield from (weights.ends.embedding, weights.ends.final_norm, weights.ends.lm_head)
    yield from weights.borrowed
