"""A family as data: how its config.json and its tensors' names differ from Llama's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from tokenvm.errors import UnsupportedModel
from tokenvm.models.families.ropes import rope_of
from tokenvm.models.fields import Fields
from tokenvm.models.spec import (
    AttentionSpec,
    EndTensors,
    LayerTensors,
    MlpSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)

NEVER: Final = ("quantization_config", "rope_interleaved", "num_local_experts", "mlp_bias")
"""Keys of config.json that no native family can have on."""

_ACTIVATIONS: Final[Mapping[str, Literal["silu", "gelu_tanh"]]] = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class Windows:
    """Which layers see `window` tokens only."""

    window: int = 0
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ropes:
    """The rope of full layers, and of windowed ones if theirs differs."""

    full: RopeSpec
    local: RopeSpec | None = None


def no_windows(fields: Fields) -> Windows:
    """Every layer sees every token; a config that says otherwise is refused."""
    if fields.values.get("sliding_window"):
        raise unsupported(fields, "sliding_window")
    kinds = layer_kinds(fields)
    if "sliding_attention" in kinds:
        raise unsupported(fields, "layer_types")
    return Windows()


def window_everywhere(fields: Fields) -> Windows:
    """Every layer sees `sliding_window` tokens, if there is one."""
    if not fields.has("sliding_window"):
        return Windows()
    return Windows(fields.count("sliding_window"), tuple(range(fields.count("num_hidden_layers"))))


def layer_kinds(fields: Fields) -> tuple[str, ...]:
    """Return `layer_types`, empty if absent; raises UnsupportedModel for a kind of layer that is no attention."""
    kinds = fields.values.get("layer_types") or ()
    if not isinstance(kinds, list | tuple) or any(
        kind not in ("full_attention", "sliding_attention") for kind in kinds
    ):
        raise unsupported(fields, "layer_types")
    if kinds and len(kinds) != fields.count("num_hidden_layers"):
        raise fields.wrong("layer_types", kinds, "one kind for each layer")
    return tuple(kinds)


def layers_of(kinds: tuple[str, ...], kind: str) -> tuple[int, ...]:
    """Return the layers of one kind."""
    return tuple(layer for layer, found in enumerate(kinds) if found == kind)


def one_rope(fields: Fields, head_dim: int) -> Ropes:
    """Every layer has the same rope."""
    return Ropes(rope_of(fields, head_dim))


def width_scale(_: Fields, head_dim: int) -> float:
    """Return 1 / sqrt(head_dim)."""
    return float(head_dim**-0.5)


def unsupported(fields: Fields, key: str) -> UnsupportedModel:
    """Return the complaint that a key of the config asks for what the family's decoder cannot do."""
    return UnsupportedModel(
        f"{fields.source}: {key} is {fields.values.get(key)!r}; the native decoder of this family has no such thing: "
        "pass another model"
    )


@dataclass(frozen=True, slots=True)
class Recipe:
    """One family. Fields say what is unlike Llama; functions read what a config can turn on or off.

    `fused`: qkv and gate_up are stored as one tensor each. `partial_rotary`: a config may have part of each head
    rotate. `embedding_scaled`: embeddings are multiplied by sqrt(hidden). `refused`: keys that must be off beside
    `NEVER`. Where the text model is part of a larger one, its config is `section` of the whole, its tensors' names
    begin with `prefix`, and those that begin as `beside` says are left alone. `defaults` stand for absent keys.
    """

    architecture: str
    model_type: str
    qkv_bias: Callable[[Fields], bool] = lambda fields: fields.flag("attention_bias", False)
    out_bias: Callable[[Fields], bool] = lambda fields: fields.flag("attention_bias", False)
    windows: Callable[[Fields], Windows] = no_windows
    ropes: Callable[[Fields, int], Ropes] = one_rope
    scale: Callable[[Fields, int], float] = width_scale
    qk_norm: bool = False
    fused: bool = False
    partial_rotary: bool = False
    sandwich: bool = False
    norm_offset: float = 0.0
    embedding_scaled: bool = False
    tied: bool = False
    activation: str = "silu"
    activation_key: str = "hidden_act"
    head_dim: int | None = None
    rms_eps: float = 1e-6
    max_positions: int = 2048
    refused: tuple[str, ...] = ()
    section: str = ""
    prefix: str = ""
    beside: tuple[str, ...] = ()
    defaults: tuple[tuple[str, Any], ...] = ()

    def spec_from_config(self, config: Mapping[str, Any], source: str) -> ModelSpec:
        """See `Family.spec_from_config`."""
        fields = self._fields(config, source)
        for key in NEVER + self.refused:
            if fields.values.get(key):
                raise unsupported(fields, key)
        heads = self._attention(fields)
        ropes, windows = self.ropes(fields, heads.head_dim), self.windows(fields)
        if ropes.full.rotary_dim and not self.partial_rotary:
            raise unsupported(fields, "partial_rotary_factor")
        hidden = fields.count("hidden_size")
        return ModelSpec(
            architecture=self.architecture,
            layers=fields.count("num_hidden_layers"),
            hidden=hidden,
            vocab_size=fields.count("vocab_size"),
            max_model_len=fields.count("max_position_embeddings", self.max_positions),
            attention=heads,
            rope=ropes.full,
            mlp=MlpSpec(fields.count("intermediate_size"), self._activation(fields)),
            norm=NormSpec(fields.number("rms_norm_eps", self.rms_eps), self.norm_offset, self.sandwich),
            tied_embeddings=fields.flag("tie_word_embeddings", self.tied),
            eos_token_ids=fields.ids("eos_token_id"),
            bos_token_ids=fields.ids("bos_token_id")[:1],
            windowed=windows.layers,
            local_rope=ropes.local,
            embedding_scale=hidden**0.5 if self.embedding_scaled else 1.0,
        )

    def layer_tensors(self, spec: ModelSpec, layer: int) -> LayerTensors:
        """See `Family.layer_tensors`."""
        block = f"{self.prefix}model.layers.{layer}"
        attention, heads = f"{block}.self_attn", spec.attention
        projections = ("qkv_proj",) if self.fused else ("q_proj", "k_proj", "v_proj")
        gates = ("gate_up_proj",) if self.fused else ("gate_proj", "up_proj")
        before_mlp = "pre_feedforward_layernorm" if self.sandwich else "post_attention_layernorm"
        return LayerTensors(
            attn_norm=f"{block}.input_layernorm.weight",
            qkv=tuple(f"{attention}.{name}.weight" for name in projections),
            o=f"{attention}.o_proj.weight",
            mlp_norm=f"{block}.{before_mlp}.weight",
            gate_up=tuple(f"{block}.mlp.{name}.weight" for name in gates),
            down=f"{block}.mlp.down_proj.weight",
            qkv_bias=tuple(f"{attention}.{name}.bias" for name in projections) if heads.qkv_bias else (),
            o_bias=f"{attention}.o_proj.bias" if heads.out_bias else "",
            q_norm=f"{attention}.q_norm.weight" if heads.qk_norm else "",
            k_norm=f"{attention}.k_norm.weight" if heads.qk_norm else "",
            attn_post_norm=f"{block}.post_attention_layernorm.weight" if self.sandwich else "",
            mlp_post_norm=f"{block}.post_feedforward_layernorm.weight" if self.sandwich else "",
        )

    def end_tensors(self, spec: ModelSpec) -> EndTensors:
        """See `Family.end_tensors`."""
        embedding = f"{self.prefix}model.embed_tokens.weight"
        return EndTensors(
            embedding=embedding,
            final_norm=f"{self.prefix}model.norm.weight",
            lm_head=embedding if spec.tied_embeddings else f"{self.prefix}lm_head.weight",
        )

    def tensor_shapes(self, spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        """See `Family.tensor_shapes`."""
        ends = self.end_tensors(spec)
        yield ends.embedding, (spec.vocab_size, spec.hidden)
        yield ends.final_norm, (spec.hidden,)
        if not spec.tied_embeddings:
            yield ends.lm_head, (spec.vocab_size, spec.hidden)
        for layer in range(spec.layers):
            yield from _layer_shapes(spec, self.layer_tensors(spec, layer))

    def is_ignorable(self, name: str, spec: ModelSpec) -> bool:
        """See `Family.is_ignorable`: rope tables, the copy of a tied head, the rest of a larger model."""
        if name.endswith("rotary_emb.inv_freq") or (self.beside and name.startswith(self.beside)):
            return True
        return spec.tied_embeddings and name == f"{self.prefix}lm_head.weight"

    def _fields(self, config: Mapping[str, Any], source: str) -> Fields:
        """The keys of the text model; end tokens of the whole model come before its own."""
        whole = Fields(config, source)
        if not self.section:
            return whole
        section = whole.section(self.section)
        given = {key: value for key, value in section.values.items() if value is not None}
        ends = {"eos_token_id": config["eos_token_id"]} if whole.has("eos_token_id") else {}
        return Fields({**dict(self.defaults), **given, **ends}, section.source)

    def _attention(self, fields: Fields) -> AttentionSpec:
        heads = fields.count("num_attention_heads")
        kv_heads = fields.count("num_key_value_heads", heads)
        usual = self.head_dim or max(1, fields.count("hidden_size") // heads)
        head_dim = fields.count("head_dim", usual)
        if heads % kv_heads:
            raise fields.wrong("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
        if head_dim % 2:
            raise fields.wrong("head_dim", head_dim, "even")
        return AttentionSpec(
            q_heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=self.scale(fields, head_dim),
            window=self.windows(fields).window,
            qkv_bias=self.qkv_bias(fields),
            out_bias=self.out_bias(fields),
            qk_norm=self.qk_norm,
        )

    def _activation(self, fields: Fields) -> Literal["silu", "gelu_tanh"]:
        name = fields.name(self.activation_key, self.activation)
        if name not in _ACTIVATIONS:
            raise unsupported(fields, self.activation_key)
        return _ACTIVATIONS[name]


def _layer_shapes(spec: ModelSpec, names: LayerTensors) -> Iterator[tuple[str, tuple[int, ...]]]:
    heads, hidden, inner = spec.attention, spec.hidden, spec.mlp.intermediate
    kv_rows = heads.kv_heads * heads.head_dim
    rows = (heads.qkv_rows,) if len(names.qkv) == 1 else (heads.out_columns, kv_rows, kv_rows)
    yield names.attn_norm, (hidden,)
    yield from zip(names.qkv, ((count, hidden) for count in rows), strict=True)
    yield from zip(names.qkv_bias, ((count,) for count in rows), strict=bool(names.qkv_bias))
    yield names.o, (hidden, heads.out_columns)
    yield names.mlp_norm, (hidden,)
    for name in names.gate_up:
        yield name, (2 * inner // len(names.gate_up), hidden)
    yield names.down, (hidden, inner)
    for name in (names.o_bias, names.attn_post_norm, names.mlp_post_norm):
        if name:
            yield name, (hidden,)
    for name in (names.q_norm, names.k_norm):
        if name:
            yield name, (heads.head_dim,)
