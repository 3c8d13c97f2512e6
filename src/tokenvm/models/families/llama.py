"""The Llama family: rotary attention with grouped keys, RMS norms, a SiLU-gated MLP, no biases.

Maths as in Hugging Face's `LlamaForCausalLM`. What it can do and this decoder cannot is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tokenvm.errors import ModelError
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

ARCHITECTURES: Final = ("LlamaForCausalLM",)

_MUST_BE_OFF: Final = (
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "quantization_config",
    "rope_interleaved",
    "num_local_experts",
)


def spec_from_config(config: Mapping[str, Any], source: str) -> ModelSpec:
    """Turn a config.json into a ModelSpec; raises ModelError, naming `source`, for what is not supported."""
    fields = Fields(config, source)
    _refuse_unsupported(fields)
    return ModelSpec(
        architecture=ARCHITECTURES[0],
        layers=fields.count("num_hidden_layers"),
        hidden=fields.count("hidden_size"),
        vocab_size=fields.count("vocab_size"),
        max_model_len=fields.count("max_position_embeddings", 2048),
        attention=_attention(fields),
        rope=_rope(fields),
        mlp=MlpSpec(fields.count("intermediate_size")),
        norm=NormSpec(fields.number("rms_norm_eps", 1e-6)),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        eos_token_ids=fields.ids("eos_token_id"),
        bos_token_ids=fields.ids("bos_token_id")[:1],
    )


def layer_tensors(layer: int) -> LayerTensors:
    """Names of the tensors of one layer."""
    block = f"model.layers.{layer}"
    attention = f"{block}.self_attn"
    return LayerTensors(
        attn_norm=f"{block}.input_layernorm.weight",
        qkv=(f"{attention}.q_proj.weight", f"{attention}.k_proj.weight", f"{attention}.v_proj.weight"),
        o=f"{attention}.o_proj.weight",
        mlp_norm=f"{block}.post_attention_layernorm.weight",
        gate_up=(f"{block}.mlp.gate_proj.weight", f"{block}.mlp.up_proj.weight"),
        down=f"{block}.mlp.down_proj.weight",
    )


def end_tensors(spec: ModelSpec) -> EndTensors:
    """Names of the tensors before the first and after the last layer."""
    embedding = "model.embed_tokens.weight"
    return EndTensors(
        embedding=embedding,
        final_norm="model.norm.weight",
        lm_head=embedding if spec.tied_embeddings else "lm_head.weight",
    )


def tensor_shapes(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor a checkpoint must hold, with its shape (outputs first)."""
    ends = end_tensors(spec)
    yield ends.embedding, (spec.vocab_size, spec.hidden)
    yield ends.final_norm, (spec.hidden,)
    if not spec.tied_embeddings:
        yield ends.lm_head, (spec.vocab_size, spec.hidden)
    for layer in range(spec.layers):
        yield from _layer_shapes(spec, layer_tensors(layer)).items()


def is_ignorable(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor that is not in `tensor_shapes` may be there: rope tables, the copy of a tied head."""
    return name.endswith("rotary_emb.inv_freq") or (spec.tied_embeddings and name == "lm_head.weight")


def _layer_shapes(spec: ModelSpec, names: LayerTensors) -> dict[str, tuple[int, ...]]:
    attention, hidden, intermediate = spec.attention, spec.hidden, spec.mlp.intermediate
    kv_rows = attention.kv_heads * attention.head_dim
    query, key, value = names.qkv
    gate, up = names.gate_up
    return {
        names.attn_norm: (hidden,),
        query: (attention.out_columns, hidden),
        key: (kv_rows, hidden),
        value: (kv_rows, hidden),
        names.o: (hidden, attention.out_columns),
        names.mlp_norm: (hidden,),
        gate: (intermediate, hidden),
        up: (intermediate, hidden),
        names.down: (hidden, intermediate),
    }


def _refuse_unsupported(fields: Fields) -> None:
    for key in _MUST_BE_OFF:
        if fields.values.get(key):
            raise ModelError(
                f"{fields.source}: {key} is {fields.values[key]!r}; supported are Llama models without it: "
                "pass another model"
            )
    activation = fields.name("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(
            f'{fields.source}: hidden_act is {activation!r}; supported is "silu": pass another model'
        )
    kinds = fields.values.get("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        raise ModelError(
            f"{fields.source}: layer_types holds {sorted(set(map(str, kinds)))}; "
            'supported is "full_attention": pass another model'
        )


def _attention(fields: Fields) -> AttentionSpec:
    heads = fields.count("num_attention_heads")
    kv_heads = fields.count("num_key_value_heads", heads)
    head_dim = fields.count("head_dim", max(1, fields.count("hidden_size") // heads))
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
    if head_dim % 2:
        raise fields.wrong("head_dim", head_dim, "even")
    return AttentionSpec(q_heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=head_dim**-0.5)


def _rope(fields: Fields) -> RopeSpec:
    """Read either spelling: rope_theta with rope_scaling, or rope_parameters that hold both."""
    old = not fields.has("rope_parameters")
    scaling = fields.section("rope_scaling" if old else "rope_parameters")
    theta = fields.number("rope_theta", 10000.0) if old else scaling.number("rope_theta", 10000.0)
    kind = scaling.name("rope_type", scaling.name("type", "default"))
    if (
        scaling.number("partial_rotary_factor", 1.0) != 1.0
        or fields.number("partial_rotary_factor", 1.0) != 1.0
    ):
        raise ModelError(f"{fields.source}: partial_rotary_factor is not supported: pass another model")
    if kind == "default":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", factor=scaling.number("factor"))
    if kind == "llama3":
        return _llama3_rope(theta, scaling)
    raise ModelError(
        f'{fields.source}: rope type {kind!r}; supported are "default", "linear" and "llama3": '
        "pass another model"
    )


def _llama3_rope(theta: float, scaling: Fields) -> RopeSpec:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.wrong("high_freq_factor", high, f"more than low_freq_factor ({low})")
    return RopeSpec(
        theta=theta,
        kind="llama3",
        factor=scaling.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=scaling.count("original_max_position_embeddings"),
    )
