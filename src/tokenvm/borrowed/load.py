"""Any model of a folder: by its native family, or else by the modules that Transformers has for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from tokenvm.borrowed.attention import NAME, attention
from tokenvm.borrowed.declared import has_longrope, hides_windows
from tokenvm.borrowed.decoder import BorrowedDecoder
from tokenvm.borrowed.products import pack_products
from tokenvm.borrowed.trial import LayerShape, tried
from tokenvm.errors import ModelError, UnsupportedModel
from tokenvm.json_file import read_json
from tokenvm.models.context import EndWeights
from tokenvm.models.registry import stop_tokens
from tokenvm.models.spec import AttentionSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec
from tokenvm.models.weights.pack import LoadedModel, ModelWeights, load_model, resolve_dtype

_OWN: Final = "eager"
_KINDS: Final = frozenset({"full_attention", "sliding_attention"})


def load_any_model(folder: Path, dtype: str = "auto") -> LoadedModel:
    """Load the model of a Hugging Face folder, natively if there is a family for it, else with Transformers' modules.

    Raises ModelError for a folder that is damaged; UnsupportedModel, saying why, where neither can run it or
    Transformers is not installed; ConfigError for an unknown dtype.
    """
    try:
        return load_model(folder, dtype)
    except UnsupportedModel as error:
        return borrow_model(folder, dtype, str(error))


def borrow_model(folder: Path, dtype: str, why: str) -> LoadedModel:
    """Load a model as Transformers' modules. `why` tells, in messages, what speaks against a native family."""
    library, kind = _transformers(why), resolve_dtype(dtype)
    _refuse_quantised(folder)
    library.AttentionInterface.register(NAME, attention)
    module = _module(library, folder, kind, why)
    name = type(module).__name__
    packed: list[torch.Tensor] = []
    shapes = _checked(module, name, why, lambda: packed.extend(pack_products(module)))
    tensors = {t.data_ptr(): t for t in (*packed, *module.parameters(), *module.buffers())}.values()
    weights = ModelWeights(kind, (), EndWeights.nothing(kind), tuple(t.contiguous() for t in tensors))
    return LoadedModel(_spec(module, name, shapes, folder), weights, partial(BorrowedDecoder, module))


def _transformers(why: str) -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UnsupportedModel(
            f'{why}; or let Transformers\' modules run it: type pip install "tokenvm[verify]"'
        ) from error


def _refuse_quantised(folder: Path) -> None:
    if read_json(folder / "config.json").get("quantization_config"):
        raise UnsupportedModel(
            f"{folder / 'config.json'}: quantization_config is set; supported are checkpoints that are not "
            "quantised: pass another model"
        )


def _module(library: Any, folder: Path, dtype: torch.dtype, why: str) -> Any:
    library.utils.logging.disable_progress_bar()
    try:
        return library.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=_OWN, local_files_only=True
        ).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{why}; nor can Transformers read {folder} ({error}): pass another model"
        ) from error


def _checked(module: Any, name: str, why: str, prepare: Callable[[], object]) -> list[LayerShape]:
    config = module.config
    if config.is_encoder_decoder or getattr(module, "_is_stateful", False):
        raise UnsupportedModel(
            f"{why}; {name} is no decoder that keeps keys and values alone: pass another model"
        )
    if not module._supports_attention_backend:
        raise UnsupportedModel(f"{why}; {name} cannot have its attention done elsewhere: pass another model")
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - _KINDS)
    if odd:
        raise UnsupportedModel(f"{why}; {name} has layers of type {', '.join(odd)}: pass another model")
    if has_longrope(config):
        raise UnsupportedModel(
            f"{why}; {name} has a rope of type longrope, whose factors change with the longest sequence of a step: "
            "pass another model"
        )
    shapes = tried(module, name, _OWN, NAME, prepare)
    if hides_windows(config, shapes):
        raise UnsupportedModel(
            f"{why}; {name} has a sliding window that its attention does not ask for: pass another model"
        )
    if len({(s.q_heads, s.kv_heads, s.head_dim, s.scale) for s in shapes}) > 1:
        raise UnsupportedModel(f"{why}; the layers of {name} differ in their heads: pass another model")
    if len({s.window for s in shapes if s.window}) > 1:
        raise UnsupportedModel(f"{why}; the layers of {name} differ in their windows: pass another model")
    return shapes


def _spec(module: Any, name: str, shapes: list[LayerShape], folder: Path) -> ModelSpec:
    """Describe the model: heads as the trial saw them, the rest as its config says."""
    config, first = module.config, shapes[0]
    ids = {key: getattr(config, key, None) for key in ("eos_token_id", "bos_token_id")}
    eos, bos = (tuple(v) if isinstance(v, list) else (() if v is None else (v,)) for v in ids.values())
    return ModelSpec(
        architecture=name,
        layers=len(shapes),
        hidden=config.hidden_size,
        vocab_size=module.get_output_embeddings().out_features,
        max_model_len=getattr(config, "max_position_embeddings", None) or 2048,
        attention=AttentionSpec(
            q_heads=first.q_heads,
            kv_heads=first.kv_heads,
            head_dim=first.head_dim,
            scale=first.scale,
            window=max(shape.window for shape in shapes),
        ),
        rope=RopeSpec(theta=1.0, kind="none"),
        mlp=MlpSpec(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        norm=NormSpec(eps=0.0),
        tied_embeddings=bool(config.tie_word_embeddings),
        eos_token_ids=stop_tokens(eos, folder),
        bos_token_ids=bos[:1],
        windowed=tuple(layer for layer, shape in enumerate(shapes) if shape.window),
    )
