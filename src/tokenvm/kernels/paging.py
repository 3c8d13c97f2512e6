"""Page parts: their geometry, and what writes into them. A part is one layer of one page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

_TOKENS_STEP = 16
_HEAD_ALIGNMENT_BYTES = 64

KvFormat = Literal["raw", "int8", "fp8"]
KV_FORMATS: Final[tuple[KvFormat, ...]] = ("raw", "int8", "fp8")
"""In the order of the native kernels."""


@dataclass(frozen=True)
class PartGeometry:
    """Shape and order of the bytes of a part.

    Per kv head: K as [head_dim/w][block_tokens][w], then V as [block_tokens/w][head_dim][w], w = 2 for
    bfloat16 and 1 for float32; heads follow one another. So tile registers read 32 dims x 16 tokens of K and
    32 tokens x 16 dims of V in place.

    In the format "int8" or "fp8" a code of one byte stands for each element, in the same order, and after the
    codes of a head come float32 scales, of keys, then of values: one per dimension and one per token (int8),
    one and one (fp8). See docs/kv-formats.md.

    Raises ValueError on a geometry the kernels cannot hold.
    """

    kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: torch.dtype
    kv_format: KvFormat = "raw"

    def __post_init__(self) -> None:
        if str(self.dtype) not in ("torch.bfloat16", "torch.float32"):
            raise ValueError(f"a part's dtype must be torch.bfloat16 or torch.float32, not {self.dtype}")
        if self.kv_heads < 1 or self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"kv_heads={self.kv_heads} must be at least 1 and head_dim={self.head_dim} even")
        if self.block_tokens < _TOKENS_STEP or self.block_tokens % _TOKENS_STEP:
            raise ValueError(f"block_tokens={self.block_tokens} must be a multiple of {_TOKENS_STEP}")
        if self.kv_format not in KV_FORMATS:
            raise ValueError(f"kv_format={self.kv_format!r} must be one of {', '.join(KV_FORMATS)}")

    @property
    def layout_id(self) -> str:
        """Names the order and the format of a part's bytes."""
        return "kv-k32-1" if self.kv_format == "raw" else f"kv-k32-1-{self.kv_format}"

    @property
    def raw(self) -> PartGeometry:
        """The same part with its elements as they are."""
        return replace(self, kv_format="raw")

    @property
    def lossy(self) -> bool:
        """Whether elements are kept as codes."""
        return self.kv_format != "raw"

    @property
    def part_bytes(self) -> int:
        """Bytes of one part."""
        elements = 2 * self.block_tokens * self.head_dim
        if self.kv_format == "raw":
            return self.kv_heads * elements * self.dtype.itemsize
        scales = self.head_dim + self.block_tokens if self.kv_format == "int8" else 2
        head_bytes = -(-(elements + 4 * scales) // _HEAD_ALIGNMENT_BYTES) * _HEAD_ALIGNMENT_BYTES
        return self.kv_heads * head_bytes

    @property
    def narrow(self) -> bool:
        """Whether elements are bfloat16 (else float32)."""
        return self.dtype.itemsize == 2

    @property
    def format_number(self) -> int:
        """The format, as the native kernels take it."""
        return KV_FORMATS.index(self.kv_format)

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
    different tokens; the parts are raw and must stay valid during the call. Raises ValueError if a position or an
    offset is out of range.
    """
    from tokenvm.kernels import checks
    from tokenvm.kernels.native import native

    _refuse_lossy(geometry)
    out, target = checks.result(out, (len(qkv), q_heads, geometry.head_dim), geometry.dtype)
    native().rope_append(
        *_qkv_rows(qkv, geometry, q_heads),
        *geometry.sizes,
        *_angles(cos_sin, geometry),
        *_places(positions, parts, offsets, len(qkv)),
        target,
    )
    return out


def _qkv_rows(qkv: torch.Tensor, geometry: PartGeometry, q_heads: int) -> tuple[int, int, int]:
    """Address, rows and query heads of qkv."""
    import torch

    from tokenvm.kernels import checks

    rows, width = checks.dimensions("qkv", qkv, 2)
    if width != (q_heads + 2 * geometry.kv_heads) * geometry.head_dim:
        raise ValueError(
            f"qkv has {width} columns, not ({q_heads} + 2 * {geometry.kv_heads}) * {geometry.head_dim}"
        )
    return checks.tensor("qkv", qkv, (rows, width), torch.float32), rows, q_heads


def _angles(cos_sin: torch.Tensor, geometry: PartGeometry) -> tuple[int, int]:
    """Address and count of the angles."""
    import torch

    from tokenvm.kernels import checks

    angles = checks.dimensions("cos_sin", cos_sin, 2)[0]
    return checks.tensor("cos_sin", cos_sin, (angles, geometry.head_dim), torch.float32), angles


def _places(
    positions: torch.Tensor, parts: npt.NDArray[np.uint64], offsets: npt.NDArray[np.int32], rows: int
) -> tuple[int, int, int]:
    """Addresses of where each row stands in its sequence, and of the part and the token in it that it goes to."""
    import torch

    from tokenvm.kernels import checks

    return (
        checks.tensor("positions", positions, (rows,), torch.int64),
        checks.array("parts", parts, (rows,), np.uint64),
        checks.array("offsets", offsets, (rows,), np.int32),
    )


def fill(address: int, nbytes: int, byte: int) -> None:
    """Set `nbytes` bytes at an address to `byte`."""
    from tokenvm.kernels.native import native

    native().fill(address, nbytes, byte)


def copy(target: int, source: int, nbytes: int) -> None:
    """Copy bytes from address to address; the ranges must not overlap."""
    from tokenvm.kernels.native import native

    native().copy(target, source, nbytes)


def read_part(address: int, geometry: PartGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """The raw part at an address as (k, v), each [kv_heads, block_tokens, head_dim].

    Raises ValueError for a lossy geometry: see `kernels.quantise.dequantise`.
    """
    import torch

    from tokenvm.kernels.native import native

    _refuse_lossy(geometry)
    shape = (geometry.kv_heads, geometry.block_tokens, geometry.head_dim)
    k, v = torch.empty(shape, dtype=geometry.dtype), torch.empty(shape, dtype=geometry.dtype)
    native().read_part(address, *geometry.sizes, k.data_ptr(), v.data_ptr())
    return k, v


def write_part(address: int, geometry: PartGeometry, k: torch.Tensor, v: torch.Tensor) -> None:
    """Write k and v, each [kv_heads, block_tokens, head_dim], into the raw part at an address.

    Raises ValueError for a lossy geometry: see `kernels.quantise.quantise`.
    """
    from tokenvm.kernels import checks
    from tokenvm.kernels.native import native

    _refuse_lossy(geometry)
    shape = (geometry.kv_heads, geometry.block_tokens, geometry.head_dim)
    keys = checks.tensor("k", k, shape, geometry.dtype)
    values = checks.tensor("v", v, shape, geometry.dtype)
    native().write_part(address, *geometry.sizes, keys, values)


def _refuse_lossy(geometry: PartGeometry) -> None:
    if geometry.lossy:
        raise ValueError(f"a raw part is wanted, not one in the format {geometry.kv_format}")
