"""Masks that are described, not made: what a model asks of its mask, and whether that is what our kernel computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokenvm.bridges.library import sdpa_mask

_REQUEST = "_tokenvm_mask"


@dataclass(frozen=True, slots=True)
class MaskRequest:
    """The arguments of a mask interface: `batch_size`, `q_length`, `kv_length`, `q_offset`, `mask_function`, …"""

    arguments: Mapping[str, Any]

    def materialise(self) -> torch.Tensor | None:
        """Make the mask, as attention of Transformers wants it: bool [B, 1, T, L], or None for plain causality."""
        made: torch.Tensor | None = sdpa_mask(**self.arguments)
        return made

    def kept(self, begin: int) -> npt.NDArray[np.bool_]:
        """Return which columns from `begin` on are tokens, bool [B, T]; the others are padding."""
        a = self.arguments
        padding = a.get("attention_mask")
        end = begin + int(a["q_length"])
        if padding is None:
            return np.ones((int(a["batch_size"]), end - begin), np.bool_)
        found: npt.NDArray[np.bool_] = padding[:, begin:end].numpy()
        return found

    def refusal(self, past: npt.NDArray[np.bool_], window: int) -> str:
        """Say why this is not causal attention with that window over the columns `past` bool [B, P] and new ones; ""
        if it is. With a window, padding has to stand before all tokens.
        """
        a = self.arguments
        columns = past.shape[1]
        if a.get("use_vmap"):
            return "a mask function of its own"
        if (int(a["q_offset"]), int(a.get("kv_offset", 0))) != (columns, 0):
            return f"a mask that begins at {a['q_offset']} where {columns} tokens are kept"
        padding = a.get("attention_mask")
        before = np.ones_like(past) if padding is None else padding[:, :columns].numpy()
        if before.shape != past.shape or not np.array_equal(before, past):
            return "a padding mask that changed since the tokens were kept"
        kept = np.concatenate([past, self.kept(columns)], axis=1)
        if window and (np.diff(kept.astype(np.int8), axis=1) < 0).any():
            return "padding between or after tokens under a sliding window"
        return "" if self._is_causal(window) else "a mask that is not causal attention"

    def _is_causal(self, window: int) -> bool:
        """Look at the borders of what every row may see: its first and last columns, and those beside them."""
        a = self.arguments
        q = torch.arange(int(a["q_length"]))[:, None] + int(a["q_offset"])
        borders = [0, -1, 1] if not window else [0, -1, 1, -window, 1 - window]
        columns = torch.cat([q + border for border in borders] + [torch.zeros_like(q)], dim=1)
        columns = columns.clamp(0, max(int(a["kv_length"]) - 1, 0))
        expected = columns <= q
        if window:
            expected &= columns > q - window
        zero = torch.zeros(1, dtype=torch.int64)
        function = a["mask_function"]
        found = [function(zero + row, zero, q, columns) for row in range(int(a["batch_size"]))]
        return all(torch.equal(torch.broadcast_to(one, expected.shape), expected) for one in found)


def describe_mask(**arguments: Any) -> torch.Tensor:
    """Answer a mask interface with a stand-in that carries its request. No mask is made."""
    stand_in = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    setattr(stand_in, _REQUEST, MaskRequest(arguments))
    return stand_in


def requested(mask: torch.Tensor | None) -> MaskRequest | None:
    """Return the request that a mask stands for; None for a mask that was made elsewhere, or none at all."""
    return getattr(mask, _REQUEST, None)
