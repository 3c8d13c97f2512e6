"""Rotary position tables, computed as Hugging Face computes them, in float32 throughout."""

from __future__ import annotations

import math

import torch

from tokenvm.models.spec import RopeSpec


def rotary_dim(rope: RopeSpec, head_dim: int) -> int:
    """How many leading dimensions of a head rotate."""
    return rope.rotary_dim or head_dim


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """Angle per position of each rotated pair: fp32 [rotary_dim / 2]."""
    turning = rotary_dim(rope, head_dim)
    powers = rope.theta ** (torch.arange(0, turning, 2, dtype=torch.float32) / turning)
    if rope.kind == "longrope":
        return 1.0 / (torch.tensor(rope.short_factors, dtype=torch.float32) * powers)
    if rope.kind == "yarn":
        return _yarn(rope, powers, turning)
    frequencies: torch.Tensor = 1.0 / powers
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, frequencies)
    return frequencies


def cos_sin(rope: RopeSpec, head_dim: int, positions: int) -> torch.Tensor:
    """Cosines, then sines, of every position below `positions`: fp32 [positions, head_dim].

    A rope of kind "none" has one row, for every position. Pairs that do not rotate have cosine 1 and sine 0; see
    `rows_of_head` for where they lie in a head.
    """
    if rope.kind == "none":
        return torch.cat((torch.ones(1, head_dim // 2), torch.zeros(1, head_dim // 2)), dim=1)
    frequencies = inverse_frequencies(rope.resolved(positions), head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
    still = head_dim // 2 - frequencies.shape[0]
    if still:
        cos = torch.cat((cos, torch.ones(positions, still)), dim=1)
        sin = torch.cat((sin, torch.zeros(positions, still)), dim=1)
    return torch.cat((cos, sin), dim=1)


def rows_of_head(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """The order of a head's dimensions that puts every rotated pair half a head apart: int64 [head_dim].

    The kernel rotates dimension d with d + head_dim / 2, a checkpoint with d + rotary_dim / 2. Dots of q and k do not
    change when both are put into another order.
    """
    half = rotary_dim(rope, head_dim) // 2
    still = torch.arange(2 * half, head_dim)
    low, high = torch.arange(half), torch.arange(half, 2 * half)
    middle = (head_dim - 2 * half) // 2
    return torch.cat((low, still[:middle], high, still[middle:]))


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


def _yarn(rope: RopeSpec, powers: torch.Tensor, turning: int) -> torch.Tensor:
    """Keep what turns often within the original length, stretch what does not (Peng et al., arXiv:2309.00071)."""

    def dimension(turns: float) -> float:
        waves = rope.original_max_positions / (turns * 2 * math.pi)
        return turning * math.log(waves) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turning - 1)
    width = high - low if high != low else 0.001
    stretched = ((torch.arange(turning // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept = 1 - stretched
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept
