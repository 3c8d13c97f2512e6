"""Rotary position tables, computed as Hugging Face's Llama computes them, in float32 throughout."""

from __future__ import annotations

import math

import torch

from tokenvm.models.spec import RopeSpec


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """Angle per position of each of the head_dim / 2 rotated pairs: fp32 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies: torch.Tensor = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, frequencies)
    return frequencies


def cos_sin(rope: RopeSpec, head_dim: int, positions: int) -> torch.Tensor:
    """Cosines, then sines, of every position below `positions`: fp32 [positions, head_dim]."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), inverse_frequencies(rope, head_dim))
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def _llama3(rope: RopeSpec, frequencies: torch.Tensor) -> torch.Tensor:
    """Keep short waves, divide the frequency of long ones, blend between (the Llama 3.1 release's rule)."""
    longest = rope.original_max_positions / rope.low_freq_factor
    shortest = rope.original_max_positions / rope.high_freq_factor
    waves = 2 * math.pi / frequencies
    scaled = torch.where(waves > longest, frequencies / rope.factor, frequencies)
    smooth = (rope.original_max_positions / waves - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * scaled / rope.factor + smooth * scaled
    return torch.where((waves >= shortest) & (waves <= longest), blended, scaled)
