"""What a model is, as numbers: geometry, rope, norms, layers. No weights, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import torch

from tokenvm.errors import ConfigError

MIN_BLOCK_TOKENS: Final = 16
MAX_BLOCK_TOKENS: Final = 256
PART_ALIGNMENT_BYTES: Final = 4096
"""Parts of a page start at multiples of this, so that each can be read from disk alone."""

_TARGET_PART_BYTES: Final = 64 * 1024

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope", "none"]


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Heads of an attention layer. `scale` multiplies q·k.

    A row at position p of a windowed layer (`ModelSpec.windowed`) sees the `window` tokens that end with p. `qkv_bias`
    and `out_bias`: whether the projections add one. `qk_norm`: whether each head of q and k is normalised before rope.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False

    @property
    def qkv_rows(self) -> int:
        """Outputs of the joined query, key and value projection: (q_heads + 2 kv_heads) * head_dim."""
        return (self.q_heads + 2 * self.kv_heads) * self.head_dim

    @property
    def out_columns(self) -> int:
        """Inputs of the output projection: q_heads * head_dim."""
        return self.q_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding, half-rotation form. Kind "default" uses theta alone.

    `rotary_dim`: the leading dimensions of a head that rotate, 0 for all. `attention_factor` multiplies cosines and
    sines. "longrope" divides the frequencies by `short_factors`, and by `long_factors` in an engine that takes more
    than `original_max_positions` tokens. "none": the model rotates by itself, or not at all.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    rotary_dim: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def resolved(self, positions: int) -> RopeSpec:
        """Return the rope of an engine that takes so many positions: the factors of a longrope are chosen once."""
        if self.kind != "longrope":
            return self
        long = positions > self.original_max_positions
        return replace(self, short_factors=self.long_factors) if long else self


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A gated feed-forward layer: down(activation(gate(x)) * up(x))."""

    intermediate: int
    activation: Literal["silu", "gelu_tanh"] = "silu"


@dataclass(frozen=True, slots=True)
class NormSpec:
    """Root-mean-square normalisation: x * rsqrt(mean(x²) + eps) * weight.

    `offset` is added to the weights that a checkpoint stores. `sandwich`: what attention and feed-forward layer give
    is normalised too, before it is added to the residual stream.
    """

    eps: float
    offset: float = 0.0
    sandwich: bool = False


@dataclass(frozen=True, slots=True)
class KVGroup:
    """The layers that share one page geometry and one lifetime rule."""

    name: str
    layers: tuple[int, ...]
    rule: Literal["full", "window"] = "full"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer whose layers all have the same shape.

    `max_model_len` is in tokens. `eos_token_ids` end a sequence; `bos_token_ids` holds one id, or none. `windowed` are
    the layers that see `attention.window` tokens only; they use `local_rope` if there is one. `embedding_scale`
    multiplies embeddings.
    """

    architecture: str
    layers: int
    hidden: int
    vocab_size: int
    max_model_len: int
    attention: AttentionSpec
    rope: RopeSpec
    mlp: MlpSpec
    norm: NormSpec
    tied_embeddings: bool
    eos_token_ids: tuple[int, ...]
    bos_token_ids: tuple[int, ...]
    windowed: tuple[int, ...] = ()
    local_rope: RopeSpec | None = None
    embedding_scale: float = 1.0

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """The KV groups of the model: layers that see every token, layers that see a window."""
        full = tuple(layer for layer in range(self.layers) if layer not in self.windowed)
        groups = (KVGroup("full", full), KVGroup("window", self.windowed, "window"))
        return tuple(group for group in groups if group.layers)

    def window_of(self, layer: int) -> int:
        """How many tokens a row of this layer sees, 0 for all."""
        return self.attention.window if layer in self.windowed else 0

    def rope_of(self, layer: int) -> RopeSpec:
        """The rope of this layer."""
        return self.local_rope if self.local_rope is not None and layer in self.windowed else self.rope

    def part_bytes(self, block_tokens: int, dtype: torch.dtype) -> int:
        """Bytes of one layer of one page."""
        return self.attention.kv_heads * 2 * block_tokens * self.attention.head_dim * dtype.itemsize

    def page_bytes(self, block_tokens: int, dtype: torch.dtype) -> int:
        """Bytes of one page: a part for each layer, each rounded up to PART_ALIGNMENT_BYTES."""
        part = self.part_bytes(block_tokens, dtype)
        stride = -(-part // PART_ALIGNMENT_BYTES) * PART_ALIGNMENT_BYTES
        return self.layers * stride

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values one token leaves behind in all layers, without alignment."""
        return self.layers * self.part_bytes(1, dtype)

    def default_block_tokens(self) -> int:
        """What block_tokens="auto" means: the smallest power of two whose bf16 part has 64 KiB, 16 to 256.

        A function of the geometry alone, so that page keys and bits survive a restart.
        """
        tokens = MIN_BLOCK_TOKENS
        while tokens < MAX_BLOCK_TOKENS and self.part_bytes(tokens, torch.bfloat16) < _TARGET_PART_BYTES:
            tokens *= 2
        return tokens

    def check_block_tokens(self, block_tokens: int) -> None:
        """Raise ConfigError unless `block_tokens` is a multiple of 16 from 16 to 256."""
        if block_tokens % MIN_BLOCK_TOKENS or not MIN_BLOCK_TOKENS <= block_tokens <= MAX_BLOCK_TOKENS:
            raise ConfigError(
                f"block_tokens={block_tokens} is no multiple of {MIN_BLOCK_TOKENS} up to {MAX_BLOCK_TOKENS}: "
                f'use block_tokens="auto" ({self.default_block_tokens()} for this model)'
            )


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """Names, in a checkpoint, of one layer's tensors; a tuple of names is stacked row-wise in that order.

    What a family lacks has no name: "" or ().
    """

    attn_norm: str
    qkv: tuple[str, ...]
    o: str
    mlp_norm: str
    gate_up: tuple[str, ...]
    down: str
    qkv_bias: tuple[str, ...] = ()
    o_bias: str = ""
    q_norm: str = ""
    k_norm: str = ""
    attn_post_norm: str = ""
    mlp_post_norm: str = ""


@dataclass(frozen=True, slots=True)
class EndTensors:
    """Names of the tensors around the layers; tied models name the embedding twice."""

    embedding: str
    final_norm: str
    lm_head: str
