"""What a GGUF file of each native family looks like: its keys and its tensors' names.

Names as in https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tokenvm.errors import ModelError, UnsupportedModel
from tokenvm.models.families.gemma3 import GEMMA3
from tokenvm.models.families.llama import LLAMA
from tokenvm.models.families.phi3 import PHI3
from tokenvm.models.families.qwen import QWEN2, QWEN3
from tokenvm.models.families.recipe import Recipe
from tokenvm.models.fields import Fields
from tokenvm.models.weights.gguf_file import GgufFile

FREQUENCIES: Final = "rope_freqs.weight"
SHORT: Final = "rope_factors_short.weight"
LONG: Final = "rope_factors_long.weight"
ROPE_FACTORS: Final = (FREQUENCIES, SHORT, LONG)
"""Tensors that become numbers of config.json."""

_ENDS: Final[Mapping[str, str]] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LLAMA: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QWEN3: Final[Mapping[str, str]] = {
    **_LLAMA,
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_GEMMA3: Final[Mapping[str, str]] = {
    **_QWEN3,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_NEVER: Final = ("expert_count", "attention.key_length_mla")
_SPECIAL: Final[Mapping[str, str]] = {"bos": "bos_token_id", "padding": "pad_token_id"}
_ENDING: Final = ("eos", "eot", "eom")
_ENDING_NAMES: Final = ("<|end|>", "<end_of_turn>", "<|eot_id|>", "<|im_end|>")
_CONTROL: Final = 3

Extra = Callable[["GgufKeys"], dict[str, Any]]


class GgufKeys:
    """The metadata of a file of one architecture: keys are given without its name before them."""

    def __init__(self, gguf: GgufFile, architecture: str) -> None:
        self.gguf = gguf
        self.fields = Fields(gguf.metadata, str(gguf.path))
        self._architecture = architecture

    def key(self, name: str) -> str:
        """The whole key."""
        return f"{self._architecture}.{name}"

    def has(self, name: str) -> bool:
        """Whether the key is there and not 0 or off."""
        return bool(self.fields.values.get(self.key(name)))

    def count(self, name: str, default: int | None = None) -> int:
        """See `Fields.count`."""
        return self.fields.count(self.key(name), default)

    def number(self, name: str, default: float | None = None) -> float:
        """See `Fields.number`; the shortest decimal that means the same float32, as the original config.json has it."""
        return float(str(np.float32(self.fields.number(self.key(name), default))))

    def head_dim(self) -> int:
        """The size of a head."""
        usual = max(1, self.count("embedding_length") // self.count("attention.head_count"))
        return self.count("attention.key_length", usual)


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """One architecture of GGUF files.

    `roles`: tensors of a layer, as llama.cpp and as Hugging Face call them. `interleaved`: rows of q and k are in the
    order of interleaved pairs. `partial`: a head may rotate in part. `extra`: what config.json holds beside the usual.
    """

    architecture: str
    recipe: Recipe
    roles: Mapping[str, str]
    extra: Extra
    interleaved: bool = False
    partial: bool = False
    refused: tuple[str, ...] = ()

    def config(self, gguf: GgufFile) -> dict[str, Any]:
        """Return the config.json that the metadata stands for; raises ModelError for what is not supported."""
        keys = GgufKeys(gguf, self.architecture)
        self._refuse_unsupported(keys)
        embedding = gguf.tensors.get("token_embd.weight")
        if embedding is None:
            raise ModelError(f"{gguf.path}: tensor token_embd.weight is missing: download the file again")
        return {
            "architectures": [self.recipe.architecture],
            "model_type": self.recipe.model_type,
            self.recipe.activation_key: self.recipe.activation,
            "hidden_size": keys.count("embedding_length"),
            "intermediate_size": keys.count("feed_forward_length"),
            "num_hidden_layers": keys.count("block_count"),
            "num_attention_heads": keys.count("attention.head_count"),
            "num_key_value_heads": keys.count("attention.head_count_kv", keys.count("attention.head_count")),
            "head_dim": keys.head_dim(),
            "vocab_size": embedding.shape[0],
            "max_position_embeddings": keys.count("context_length"),
            "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
            "rope_theta": keys.number("rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in gguf.tensors,
            "torch_dtype": "bfloat16",
            **self.extra(keys),
            **_special_ids(keys.fields),
        }

    def translated(self, gguf: GgufFile, name: str) -> str:
        """Return what Hugging Face calls a tensor; raises ModelError if the family has none of this name."""
        if name in _ENDS:
            return _ENDS[name]
        match name.split("."):
            case ["blk", layer, role, "weight" | "bias" as kind] if layer.isdecimal() and role in self.roles:
                return f"model.layers.{layer}.{self.roles[role]}.{kind}"
        raise self.foreign(gguf, name)

    def foreign(self, gguf: GgufFile, name: str) -> ModelError:
        """Return the complaint about a tensor that is none of the family's."""
        return ModelError(
            f"{gguf.path}: tensor {name} is not part of a model of type {self.architecture!r}: pass another file"
        )

    def _refuse_unsupported(self, keys: GgufKeys) -> None:
        for name in _NEVER + self.refused:
            if keys.has(name):
                value = keys.fields.values[keys.key(name)]
                raise UnsupportedModel(
                    f"{keys.fields.source}: {keys.key(name)} is {value!r}, which is not supported: pass another file"
                )
        head_dim = keys.head_dim()
        whole = (
            ("attention.value_length",)
            if self.partial
            else ("attention.value_length", "rope.dimension_count")
        )
        for name in whole:
            if keys.count(name, head_dim) != head_dim:
                raise keys.fields.wrong(
                    keys.key(name), keys.fields.values[keys.key(name)], f"the head size ({head_dim})"
                )
        if keys.fields.count("split.count", 1) > 1:
            raise ModelError(
                f"{keys.fields.source} is one part of several: "
                "join them with llama-gguf-split --merge and pass the result"
            )


def family_in(gguf: GgufFile) -> GgufFamily:
    """Return the family of a file; raises UnsupportedModel for an architecture that has none."""
    architecture = gguf.metadata.get("general.architecture")
    for family in GGUF_FAMILIES:
        if family.architecture == architecture:
            return family
    known = ", ".join(repr(family.architecture) for family in GGUF_FAMILIES)
    raise UnsupportedModel(
        f"{gguf.path}: architecture {architecture!r}; supported in .gguf files are {known}: pass another file"
    )


def _special_ids(fields: Fields) -> dict[str, Any]:
    """The first and the padding token; as ends, those of a text, a turn and a message, by their key or their name."""
    found = {name: fields.ids(f"tokenizer.ggml.{role}_token_id") for role, name in _SPECIAL.items()}
    special: dict[str, Any] = {name: ids[0] for name, ids in found.items() if ids}
    ends = [one for role in _ENDING for one in fields.ids(f"tokenizer.ggml.{role}_token_id")]
    lists = [fields.values.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type")]
    pairs = zip(*(found if isinstance(found, list) else [] for found in lists), strict=False)
    named = [at for at, pair in enumerate(pairs) if pair[1] == _CONTROL and pair[0] in _ENDING_NAMES]
    if ends or named:
        special["eos_token_id"] = list(dict.fromkeys((*ends, *named)))
    return special


def _factors(keys: GgufKeys, name: str) -> list[float]:
    """The numbers of a tensor of rope factors: one for each pair that rotates."""
    pairs = keys.count("rope.dimension_count", keys.head_dim()) // 2
    if keys.gguf.tensors[name].shape != (pairs,):
        raise ModelError(
            f"{keys.gguf.path}: tensor {name} has shape {list(keys.gguf.tensors[name].shape)}, not {[pairs]}: "
            "download the file again"
        )
    return [float(value) for part in keys.gguf.rows(name) for value in part.flatten()]


def _scaling(keys: GgufKeys) -> dict[str, Any]:
    """Rope scaling as most families have it; divided frequencies become a longrope whose factors never change."""
    if FREQUENCIES in keys.gguf.tensors:
        factors = _factors(keys, FREQUENCIES)
        length = keys.count("context_length")
        longrope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
        ends = {"factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": length}
        return {"rope_scaling": {**longrope, **ends}}
    kind = keys.fields.name(keys.key("rope.scaling.type"), "none")
    if kind == "none":
        return {"rope_scaling": None}
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": keys.number("rope.scaling.factor")}}
    raise UnsupportedModel(
        f"{keys.fields.source}: rope scaling {kind!r}; supported in .gguf files are 'none' and 'linear': "
        "pass the model as a Hugging Face folder"
    )


def _phi3(keys: GgufKeys) -> dict[str, Any]:
    turning = keys.count("rope.dimension_count", keys.head_dim())
    found: dict[str, Any] = {
        "partial_rotary_factor": turning / keys.head_dim(),
        "sliding_window": keys.count("attention.sliding_window")
        if keys.has("attention.sliding_window")
        else None,
    }
    if SHORT not in keys.gguf.tensors or LONG not in keys.gguf.tensors:
        return found | _scaling(keys)
    original = keys.count("rope.scaling.original_context_length")
    scaling: dict[str, Any] = {
        "type": "longrope",
        "short_factor": _factors(keys, SHORT),
        "long_factor": _factors(keys, LONG),
    }
    if keys.has("rope.scaling.attn_factor"):
        scaling["attention_factor"] = keys.number("rope.scaling.attn_factor")
    return found | {"original_max_position_embeddings": original, "rope_scaling": scaling}


def _gemma3(keys: GgufKeys) -> dict[str, Any]:
    """llama.cpp knows the largest Gemma 3 by its layers: only there q is scaled by the width of the model."""
    per_head = keys.count("embedding_length") // keys.count("attention.head_count")
    return {
        "query_pre_attn_scalar": per_head if keys.count("block_count") == 62 else keys.head_dim(),
        "sliding_window": keys.count("attention.sliding_window"),
        "rope_theta": keys.number("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10_000.0),
        **_scaling(keys),
    }


GGUF_FAMILIES: Final = (
    GgufFamily("llama", LLAMA, _LLAMA, _scaling, interleaved=True, refused=("attention.sliding_window",)),
    GgufFamily("qwen2", QWEN2, _LLAMA, _scaling),
    GgufFamily("qwen3", QWEN3, _QWEN3, _scaling),
    GgufFamily("phi3", PHI3, _PHI3, _phi3, partial=True),
    GgufFamily(
        "gemma3",
        GEMMA3,
        _GEMMA3,
        _gemma3,
        refused=("final_logit_softcapping", "attn_logit_softcapping"),
    ),
)
