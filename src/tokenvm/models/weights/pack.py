"""From a model folder to weights packed for the kernels, tensor by tensor, never two copies of the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from tokenvm.errors import ConfigError
from tokenvm.kernels.linear import PackedMatrix, pack
from tokenvm.kernels.weight_memory import WeightMemory
from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.registry import Family, load_spec
from tokenvm.models.spec import ModelSpec
from tokenvm.models.weights.reader import Checkpoint


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All weights of a model in `dtype` (norms in fp32)."""

    dtype: torch.dtype
    layers: tuple[LayerWeights, ...]
    ends: EndWeights

    @property
    def nbytes(self) -> int:
        """Bytes of memory the weights take; a tied head counts once."""
        distinct = {id(part): part for part in _parts(self)}
        return sum(part.nbytes for part in distinct.values())


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run."""

    spec: ModelSpec
    weights: ModelWeights


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
        layers = tuple(_layer(checkpoint, memory, family, layer, target) for layer in range(spec.layers))
        return LoadedModel(
            spec, ModelWeights(target, layers, _ends(checkpoint, memory, family, spec, target))
        )


def _layer(
    checkpoint: Checkpoint, memory: WeightMemory, family: Family, layer: int, dtype: torch.dtype
) -> LayerWeights:
    names = family.layer_tensors(layer)
    return LayerWeights(
        attn_norm=_vector(checkpoint, names.attn_norm),
        qkv=_matrix(checkpoint, memory, names.qkv, dtype),
        o=_matrix(checkpoint, memory, (names.o,), dtype),
        mlp_norm=_vector(checkpoint, names.mlp_norm),
        gate_up=_matrix(checkpoint, memory, names.gate_up, dtype),
        down=_matrix(checkpoint, memory, (names.down,), dtype),
    )


def _ends(
    checkpoint: Checkpoint, memory: WeightMemory, family: Family, spec: ModelSpec, dtype: torch.dtype
) -> EndWeights:
    names = family.end_tensors(spec)
    embedding = _matrix(checkpoint, memory, (names.embedding,), dtype)
    tied = names.lm_head == names.embedding
    lm_head = embedding if tied else _matrix(checkpoint, memory, (names.lm_head,), dtype)
    return EndWeights(embedding, _vector(checkpoint, names.final_norm), lm_head)


def _matrix(
    checkpoint: Checkpoint, memory: WeightMemory, names: tuple[str, ...], dtype: torch.dtype
) -> PackedMatrix:
    parts = [checkpoint.read(name).to(dtype) for name in names]
    return pack(parts[0].contiguous() if len(parts) == 1 else torch.cat(parts), memory)


def _vector(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Copy, so that the file can be closed."""
    return checkpoint.read(name).to(torch.float32, copy=True)


def _parts(weights: ModelWeights) -> Iterable[torch.Tensor | PackedMatrix]:
    for layer in weights.layers:
        yield from (layer.attn_norm, layer.qkv, layer.o, layer.mlp_norm, layer.gate_up, layer.down)
    yield from (weights.ends.embedding, weights.ends.final_norm, weights.ends.lm_head)
