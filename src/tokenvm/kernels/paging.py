"""Page parts: their geometry, and what writes into them. A part is one layer of one page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

_TOKENS_STEP = 16


@dataclass(frozen=True)
class PartGeometry:
    """Shape and order of the bytes of a part.

    Per kv head: K as [head_dim/w][block_tokens][w], then V as [block_tokens/w][head_dim][w], w = 2 for
    bfloat16 and 1 for float32; heads follow one another. So tile registers read 32 dims x 16 tokens of K and
    32 tokens x 16 dims of V in place. Raises ValueError on a geometry the kernels cannot hold.
    """

    kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: torch.dtype

    layout_id: ClassVar[str] = "kv-k32-1"

    def __post_init__(self) -> None:
        if str(self.dtype) not in ("torch.bfloat16", "torch.float32"):
            raise ValueError(f"a part's dtype must be torch.bfloat16 or torch.float32, not {self.dtype}")
        if self.kv_heads < 1 or self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"kv_heads={self.kv_heads} must be at least 1 and head_dim={self.head_dim} even")
        if self.block_tokens < _TOKENS_STEP or self.block_tokens % _TOKENS_STEP:
            raise ValueError(f"block_tokens={self.block_tokens} must be a multiple of {_TOKENS_STEP}")

    @property
    def part_bytes(self) -> int:
        """Bytes of one part."""
        return self.kv_heads * 2 * self.block_tokens * self.head_dim * self.dtype.itemsize

    @property
    def narrow(self) -> bool:
        """Whether elements are bfloat16 (else float32)."""
        return self.dtype.itemsize == 2

    @property
    def sizes(self) -> tuple[int, int, int, bool]:
        """(kv_heads, head_dim, block_tokens, narrow), as the native kernels take them."""
        return self.kv_heads, self.head_dim, self.block_tokens, self.narrow


def rope_append(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    parts: npt.NDArray[np.uint64],
    offsets: npt.NDArray[np.int32],
    geometry: PartGeometry,
    q_heads: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rope q and k of every row, write k and v into the row's part, return the roped q.

    qkv: float32 [M, (q_heads + 2 kv_heads) * head_dim], q then k then v. cos_sin: float32 [P, head_dim], the
    cosines of head_dim/2 angles, then their sines. positions: int64 [M]. parts: uint64 [M], the address of
    the part each row's token goes to; offsets: int32 [M], its index in the page. Returns q [M, q_heads,
    head_dim] in the geometry's dtype.

    Half-rotation rope (Su et al., arXiv:2104.09864, as in Llama), in fp32, then rounded. Rows must name
    different tokens; the parts must stay valid during the call. Raises ValueError if a position or an offset
    is out of range.
    """
    import torch

    from tokenvm.kernels import checks
    from tokenvm.kernels.native import native

    rows, width = checks.dimensions("qkv", qkv, 2)
    D = geometry.head_dim
    if width != (q_heads + 2 * geometry.kv_heads) * D:
        raise ValueError(f"qkv has {width} columns, not ({q_heads} + 2 * {geometry.kv_heads}) * {D}")
    angles = checks.dimensions("cos_sin", cos_sin, 2)[0]
    out, target = checks.result(out, (rows, q_heads, D), geometry.dtype)
    native().rope_append(
        checks.tensor("qkv", qkv, (rows, width), torch.float32),
        rows,
        q_heads,
        *geometry.sizes,
        checks.tensor("cos_sin", cos_sin, (angles, D), torch.float32),
        angles,
        checks.tensor("positions", positions, (rows,), torch.int64),
        checks.array("parts", parts, (rows,), np.uint64),
        checks.array("offsets", offsets, (rows,), np.int32),
        target,
    )
    return out


def fill(address: int, nbytes: int, byte: int) -> None:
    """Set `nbytes` bytes at an address to `byte`."""
    from tokenvm.kernels.native import native

    native().fill(address, nbytes, byte)


def copy(target: int, source: int, nbytes: int) -> None:
    """Copy bytes from address to address; the ranges must not overlap."""
    from tokenvm.kernels.native import native

    native().copy(target, source, nbytes)


def read_part(address: int, geometry: PartGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """The part at an address as (k, v), each [kv_heads, block_tokens, head_dim]."""
    import torch

    from tokenvm.kernels.native import native

    shape = (geometry.kv_heads, geometry.block_tokens, geometry.head_dim)
    k, v = torch.empty(shape, dtype=geometry.dtype), torch.empty(shape, dtype=geometry.dtype)
    native().read_part(address, *geometry.sizes, k.data_ptr(), v.data_ptr())
    return k, v


def write_part(address: int, geometry: PartGeometry, k: torch.Tensor, v: torch.Tensor) -> None:
    """Write k and v, each [kv_heads, block_tokens, head_dim], into the part at an address."""
    from tokenvm.kernels import checks
    from tokenvm.kernels.native import native

    shape = (geometry.kv_heads, geometry.block_tokens, geometry.head_dim)
    keys = checks.tensor("k", k, shape, geometry.dtype)
    values = checks.tensor("v", v, shape, geometry.dtype)
    native().write_part(address, *geometry.sizes, keys, values)
