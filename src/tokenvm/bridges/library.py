"""What is used of Transformers: its interfaces of caches, attention and masks, and nothing below them."""

from __future__ import annotations

from tokenvm.errors import ConfigError

try:
    from transformers import AttentionInterface, Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
    from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
except ImportError as error:
    raise ConfigError(
        f'paging a Transformers model needs Transformers 5.18 or newer ({error}): type pip install "tokenvm[hf]"'
    ) from error

__all__ = [
    "AttentionInterface",
    "AttentionMaskInterface",
    "Cache",
    "CacheLayerMixin",
    "DynamicCache",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "EncoderDecoderCache",
    "PreTrainedModel",
    "sdpa_attention_forward",
    "sdpa_mask",
]
