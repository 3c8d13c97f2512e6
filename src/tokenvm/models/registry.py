"""Architecture name → family module, and the spec of a model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from tokenvm.errors import UnsupportedModel
from tokenvm.json_file import read_json
from tokenvm.models.families.gemma3 import GEMMA3, GEMMA3_VISION
from tokenvm.models.families.llama import LLAMA
from tokenvm.models.families.mistral import MISTRAL
from tokenvm.models.families.phi3 import PHI3
from tokenvm.models.families.qwen import QWEN2, QWEN3
from tokenvm.models.fields import Fields
from tokenvm.models.spec import EndTensors, LayerTensors, ModelSpec


class Family(Protocol):
    """What a module in `families/` provides; `Recipe` makes one of data."""

    def spec_from_config(self, config: Mapping[str, Any], source: str) -> ModelSpec:
        """Turn a config.json into a ModelSpec; raises ModelError for what is not supported."""

    def layer_tensors(self, spec: ModelSpec, layer: int) -> LayerTensors:
        """Names of the tensors of one layer."""

    def end_tensors(self, spec: ModelSpec) -> EndTensors:
        """Names of the tensors before the first and after the last layer."""

    def tensor_shapes(self, spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield every tensor a checkpoint must hold, with its shape."""

    def is_ignorable(self, name: str, spec: ModelSpec) -> bool:
        """Whether a tensor beyond those may be there and is not needed."""


RECIPES: Final = (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA3, GEMMA3_VISION)
"""The native families."""

_FAMILIES: Final[Mapping[str, Family]] = {recipe.architecture: recipe for recipe in RECIPES}
_MODEL_TYPES: Final[Mapping[str, str]] = {recipe.model_type: recipe.architecture for recipe in RECIPES}


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """Return the family that covers the architecture a config.json names; raises UnsupportedModel if none does."""
    named = config.get("architectures") or [_MODEL_TYPES.get(str(config.get("model_type")), "")]
    for name in named if isinstance(named, list) else [named]:
        if name in _FAMILIES:
            return _FAMILIES[name]
    raise UnsupportedModel(
        f"{source}: architecture {named!r} has no native family; those are {', '.join(sorted(_FAMILIES))}: "
        "pass another model"
    )


def load_spec(folder: Path) -> tuple[ModelSpec, Family]:
    """Read config.json (and the stop tokens of generation_config.json) of a model folder."""
    source = str(folder / "config.json")
    config = read_json(folder / "config.json")
    family = family_of(config, source)
    spec = family.spec_from_config(config, source)
    return replace(spec, eos_token_ids=stop_tokens(spec.eos_token_ids, folder)), family


def stop_tokens(eos_token_ids: tuple[int, ...], folder: Path) -> tuple[int, ...]:
    """Join a config's end tokens with those of generation_config.json: either may hold the template's end of turn."""
    path = folder / "generation_config.json"
    extra = Fields(read_json(path), str(path)).ids("eos_token_id") if path.is_file() else ()
    return tuple(dict.fromkeys(eos_token_ids + extra))
