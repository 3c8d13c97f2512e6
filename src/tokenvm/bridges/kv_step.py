"""One forward pass of somebody else's model over paged KV: appended and attended layer by layer."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from tokenvm.errors import StorageError
from tokenvm.kernels.attention import attend
from tokenvm.kernels.paging import PartGeometry, read_part, rope_append
from tokenvm.kernels.state import AttentionState
from tokenvm.kvcache import KVCache
from tokenvm.schedule.plan import Plan
from tokenvm.vocab import SeqId


class KvStep:
    """The rows of one pass. `kept` bool [B, T] says which of its columns become tokens, in the order of `seqs`.

    Begins when it is made; ends with `close` once every layer has been appended to, or with `abandon`, which takes
    back what was appended.
    """

    def __init__(
        self,
        kv: KVCache,
        plan: Plan,
        geometry: PartGeometry,
        seqs: Sequence[SeqId],
        kept: npt.NDArray[np.bool_],
    ) -> None:
        self.plan = plan
        self.columns = kept.shape[1]
        self._kv = kv
        self._geometry = geometry
        self._row_of = {seq: row for row, seq in enumerate(seqs)}
        self._ends = {span.seq: span.end for span in plan.spans}
        self._picked = None if kept.all() else torch.from_numpy(np.flatnonzero(kept))
        self._rests = any(not span.count for span in plan.spans)  # rows that get no token attend nothing
        self._shape = kept.shape
        self._context = kv.stage(plan)
        self.staged = self._context.__enter__()
        rows = len(self.staged.positions)
        self._positions = torch.from_numpy(self.staged.positions)
        self._no_turn = torch.zeros(rows, dtype=torch.int64)
        self._angles = _identity(geometry.head_dim)
        self._state: AttentionState | None = None

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        """Append k and v, attend q to all tokens up to its own; out [B, T, Hq, D], 0 where no token is kept.

        q: [B, Hq, T, D], k and v: [B, Hkv, T, D], in the geometry's dtype. `window` as in `kernels.attention`.
        """
        rows = self._append(layer, q, k, v)
        state = self._empty_state(rows)
        for chunk, parts in self.staged.rounds(layer):
            segments, first_page = chunk.segments, chunk.first_page
            if self._rests:
                asked = segments[:, 0] < segments[:, 1]
                segments, first_page = segments[asked], first_page[asked]
            attend(
                state,
                rows,
                self._positions,
                segments,
                first_page,
                parts,
                self._geometry,
                scale,
                window,
            )
        out, _ = state.finish(q.dtype)
        if self._picked is not None:
            full = torch.zeros(self._shape[0] * self._shape[1], *out.shape[1:], dtype=out.dtype)
            full[self._picked] = out
            out = full
        return out.view(*self._shape, *out.shape[1:])

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append k and v, [B, Hkv, T, D] or narrower, and return all that is kept, copied, [B, Hkv, L, D].

        Every column is kept here, so all rows are equally long.
        """
        self._append_both(layer, k, v)
        return self.collect(layer)

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Append k and v, [B, Hkv, T, D] or narrower, and read nothing of this layer."""
        self._append_both(layer, k, v)
        self._kv.vm.filled(layer)

    def collect(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy all keys and values of a layer out of their pages, [B, Hkv, L, D] each."""
        geometry, block = self._geometry, self._geometry.block_tokens
        length = max(self._ends.values(), default=0)
        shape = (len(self._row_of), geometry.kv_heads, length, geometry.head_dim)
        keys, values = torch.empty(shape, dtype=geometry.dtype), torch.empty(shape, dtype=geometry.dtype)
        owners = self.staged.owners
        for chunk, parts in self.staged.rounds(layer):
            for page in range(chunk.pages.start, chunk.pages.stop):
                k, v = read_part(int(parts[page]), geometry)
                begin = owners[page].index * block
                for row in (self._row_of[seq] for seq in owners[page].seqs):
                    keys[row, :, begin : begin + block] = k[:, : length - begin]
                    values[row, :, begin : begin + block] = v[:, : length - begin]
        return keys, values

    def close(self) -> None:
        """End the pass: what was appended counts from now on.

        Raises StorageError where pages that were read turned out damaged; then nothing of the pass counts.
        """
        self._context.__exit__(None, None, None)
        if self.staged.lost:
            raise StorageError(
                "pages came back damaged, so this forward pass was given up: "
                "run generate again, and check the disk below nvme_path"
            )
        for span in self.plan.spans:
            self._kv.commit(span.seq, span.count, ())
        if self.plan.spills:
            self._kv.write_behind()

    def abandon(self) -> None:
        """Give the pass up: nothing of it counts, nothing stays pinned."""
        error = sys.exception() or StorageError("a forward pass over paged KV was not finished")
        try:
            self._context.__exit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                raise

    def _append_both(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        empty = k.new_empty(k.shape[0], 0, k.shape[2], self._geometry.head_dim)
        self._append(layer, empty, self._widened(k), self._widened(v))

    def _append(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Write k and v into their pages, once; return q's rows [M, Hq, D]. Positions were applied by the model."""
        heads = torch.cat([q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)], dim=2)
        rows = heads.reshape(self._shape[0] * self._shape[1], -1)
        if self._picked is not None:
            rows = rows[self._picked]
        return rope_append(
            rows.float().contiguous(),
            self._angles,
            self._no_turn,
            self.staged.targets(layer),
            self.staged.offsets,
            self._geometry,
            q.shape[1],
        )

    def _empty_state(self, rows: torch.Tensor) -> AttentionState:
        if self._state is None or self._state.acc.shape != rows.shape:
            self._state = AttentionState.empty(*rows.shape)
        else:
            self._state.reset(len(rows))
        return self._state

    def _widened(self, x: torch.Tensor) -> torch.Tensor:
        missing = self._geometry.head_dim - x.shape[-1]
        return pad(x, (0, missing)) if missing else x


def _identity(head_dim: int) -> torch.Tensor:
    """The rotation by nothing, as `rope_append` takes it: fp32 [1, head_dim]."""
    half = torch.zeros(1, head_dim // 2)
    return torch.cat([half + 1, half], dim=1)
