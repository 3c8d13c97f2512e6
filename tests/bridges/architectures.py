"""Tiny random models of many architectures, as Transformers makes them, float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as t

COMMON: Mapping[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2}

MODELS: Mapping[str, tuple[Callable[..., Any], Callable[..., Any], Mapping[str, Any]]] = {
    "Llama": (t.LlamaConfig, t.LlamaForCausalLM, GROUPED),
    "Mistral": (t.MistralConfig, t.MistralForCausalLM, {**HEADS, "sliding_window": 24}),
    "Mixtral": (t.MixtralConfig, t.MixtralForCausalLM, {**HEADS, **EXPERTS, "num_local_experts": 4}),
    "Qwen2": (t.Qwen2Config, t.Qwen2ForCausalLM, GROUPED),
    "Qwen3": (t.Qwen3Config, t.Qwen3ForCausalLM, HEADS),
    "Qwen3-MoE": (
        t.Qwen3MoeConfig,
        t.Qwen3MoeForCausalLM,
        {**HEADS, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 16},
    ),
    "Phi": (t.PhiConfig, t.PhiForCausalLM, {"partial_rotary_factor": 0.5}),
    "Phi-3": (t.Phi3Config, t.Phi3ForCausalLM, GROUPED),
    "Gemma 2": (t.Gemma2Config, t.Gemma2ForCausalLM, {**HEADS, "sliding_window": 24}),
    "Gemma 3": (
        t.Gemma3TextConfig,
        t.Gemma3ForCausalLM,
        {**HEADS, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "GPT-2": (t.GPT2Config, t.GPT2LMHeadModel, {}),
    "GPT-NeoX": (t.GPTNeoXConfig, t.GPTNeoXForCausalLM, {}),
    "OPT": (t.OPTConfig, t.OPTForCausalLM, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Falcon": (t.FalconConfig, t.FalconForCausalLM, {}),
    "Granite": (t.GraniteConfig, t.GraniteForCausalLM, GROUPED),
    "GPT-OSS": (
        t.GptOssConfig,
        t.GptOssForCausalLM,
        {
            **HEADS,
            **EXPERTS,
            "num_local_experts": 4,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "DeepSeek-V3": (
        t.DeepseekV3Config,
        t.DeepseekV3ForCausalLM,
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            **EXPERTS,
        },
    ),
    "flan-T5": (
        t.T5Config,
        t.T5ForConditionalGeneration,
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
}


def model(name: str, **changes: Any) -> Any:
    """A random model, the same each time."""
    config_class, model_class, numbers = MODELS[name]
    torch.manual_seed(0)
    config = config_class(**{**COMMON, **numbers, **changes})
    made = model_class(config).eval()
    for key, weight in made.named_parameters():
        if "norm" in key or "ln_" in key:
            weight.data.uniform_(0.5, 1.5)
        elif weight.dim() > 1:
            weight.data.normal_(0.0, 0.3)
    return made
