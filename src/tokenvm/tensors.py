"""Tensors in pages: larger than the device, made and read a page at a time."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from tokenvm.errors import RequestError
from tokenvm.tensor_memory import Fill, MemoryHint, TensorMemory, VirtualAddress

Scalar = float | int
Make = Callable[[int, int], torch.Tensor]


class PagedTensor:
    """A contiguous tensor whose pages lie wherever there is room. Its pages go when it does.

    `shape` is an int or a sequence. Filled with zeros, or by `make(begin, end)`, which gives flat elements in order.
    Without `memory` it takes that of the `with` block around it. Page i holds the elements
    from i * `page_elements` on.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        memory: TensorMemory | None = None,
        dtype: torch.dtype = torch.float32,
        hint: MemoryHint = MemoryHint.NONE,
        make: Make | None = None,
    ) -> None:
        self.shape = torch.Size([shape] if isinstance(shape, int) else shape)
        self.dtype = dtype
        self.memory = TensorMemory.current() if memory is None else memory
        self.page_elements = self.memory.page_bytes // dtype.itemsize
        if not self.numel():
            raise RequestError(f"a PagedTensor of shape {tuple(self.shape)} holds nothing: use torch.empty")
        fill = None if make is None else self._filler(make)
        self.requires_grad = False
        self.grad: PagedTensor | None = None
        self.address: VirtualAddress = self.memory.allocate(self.nbytes, hint, fill)
        self._finalizer = weakref.finalize(self, self.memory.deallocate, self.address)

    @classmethod
    def of(
        cls, tensor: torch.Tensor, memory: TensorMemory | None = None, hint: MemoryHint = MemoryHint.NONE
    ) -> PagedTensor:
        """Copy a tensor into pages."""
        flat = tensor.detach().reshape(-1)
        return cls(tensor.shape, memory, tensor.dtype, hint, lambda begin, end: flat[begin:end])

    @classmethod
    def randn(
        cls,
        shape: int | Sequence[int],
        memory: TensorMemory | None = None,
        generator: torch.Generator | None = None,
    ) -> PagedTensor:
        """Make a float32 tensor of normal numbers."""
        return cls(shape, memory, make=lambda begin, end: torch.randn(end - begin, generator=generator))

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.numel() * self.dtype.itemsize

    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def chunks(self, *others: PagedTensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the elements page by page, 1-D, those of `others` of the same shape and dtype beside them.

        What is yielded is lent: it may be gone when the next is asked for.
        """
        for other in others:
            self._refuse_other(other)
        pages = self.memory.scan(self.address, *(other.address for other in others))
        for (begin, end), views in zip(self._borders(), pages, strict=True):
            yield tuple(view.view(self.dtype)[: end - begin] for view in views)

    def tensor(self) -> torch.Tensor:
        """Copy all of it into an ordinary tensor."""
        flat = torch.empty(self.numel(), dtype=self.dtype)
        for (begin, end), (chunk,) in zip(self._borders(), self.chunks(), strict=True):
            flat[begin:end] = chunk
        return flat.view(self.shape)

    def __getitem__(self, rows: int | slice) -> torch.Tensor:
        """Copy rows of the first dimension into an ordinary tensor; a slice has step 1."""
        begin, end, shape = self._range(rows)
        return self._flat(begin, end).view(shape)

    def __setitem__(self, rows: int | slice, value: torch.Tensor | Scalar) -> None:
        """Write rows of the first dimension."""
        begin, end, shape = self._range(rows)
        given = torch.as_tensor(value).dtype
        if not torch.can_cast(given, self.dtype):
            raise self._other_dtype(given)
        flat = torch.as_tensor(value, dtype=self.dtype).expand(shape).reshape(-1)
        at = begin
        while at < end:
            index, offset = divmod(at, self.page_elements)
            count = min(self.page_elements - offset, end - at)
            with self.memory.writing(self.address, index) as page:
                page.view(self.dtype)[offset : offset + count] = flat[at - begin : at - begin + count]
            at += count

    def map(self, function: Callable[..., torch.Tensor], *others: PagedTensor) -> PagedTensor:
        """Make a tensor of what `function` gives for every page of this one and of the others beside it.

        Raises RequestError where that is of another dtype.
        """
        pieces = (self._of_dtype(function(*chunks)) for chunks in self.chunks(*others))
        return PagedTensor(self.shape, self.memory, self.dtype, make=lambda begin, end: next(pieces))

    def __add__(self, other: PagedTensor | Scalar) -> PagedTensor:
        return self._with(torch.add, other)

    def __sub__(self, other: PagedTensor | Scalar) -> PagedTensor:
        return self._with(torch.sub, other)

    def __rsub__(self, other: Scalar) -> PagedTensor:
        return self._with(lambda mine, given: given - mine, other)

    def __mul__(self, other: PagedTensor | Scalar) -> PagedTensor:
        return self._with(torch.mul, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def __truediv__(self, other: PagedTensor | Scalar) -> PagedTensor:
        return self._with(torch.div, other)

    def __neg__(self) -> PagedTensor:
        return self.map(torch.neg)

    def sum(self) -> torch.Tensor:
        """Add all elements, in float64 for floats; the answer is of this dtype, int64 for integers."""
        return self._total().to(self.dtype if self.dtype.is_floating_point else torch.int64)

    def mean(self) -> torch.Tensor:
        """Return the mean of all elements, divided in float64; float32 for integers."""
        return (self._total() / self.numel()).to(
            self.dtype if self.dtype.is_floating_point else torch.float32
        )

    def max(self) -> torch.Tensor:
        """Return the largest element."""
        return torch.stack([chunk.max() for (chunk,) in self.chunks()]).max()

    def min(self) -> torch.Tensor:
        """Return the smallest element."""
        return torch.stack([chunk.min() for (chunk,) in self.chunks()]).min()

    def __matmul__(self, other: torch.Tensor) -> torch.Tensor:
        """This [M, K] @ other [K, N] or [K], to an ordinary tensor: rows by rows, as pages come."""
        if len(self.shape) != 2 or other.shape[:1] != self.shape[1:]:
            raise RequestError(
                f"{tuple(self.shape)} @ {tuple(other.shape)} do not fit: the inner sizes differ"
            )
        return torch.cat([rows @ other for rows in self.row_blocks()])

    def row_blocks(self) -> Iterator[torch.Tensor]:
        """Yield a matrix [M, K] as blocks of whole rows in order, copied where a row lies in two pages."""
        columns, rest = self.shape[1], torch.empty(0, dtype=self.dtype)
        for (chunk,) in self.chunks():
            flat = torch.cat([rest, chunk])
            whole = len(flat) - len(flat) % columns
            rest = flat[whole:].clone()
            if whole:
                yield flat[:whole].view(-1, columns)

    def _with(self, operation: Callable[..., torch.Tensor], other: PagedTensor | Scalar) -> PagedTensor:
        if isinstance(other, PagedTensor):
            return self.map(operation, other)
        if isinstance(other, torch.Tensor) and other.dim():
            raise RequestError(
                f"a PagedTensor and a tensor {tuple(other.shape)} do not go together: use PagedTensor.of(it)"
            )
        return self.map(lambda chunk: operation(chunk, other))

    def _total(self) -> torch.Tensor:
        wide = torch.float64 if self.dtype.is_floating_point else torch.int64
        return torch.stack([chunk.sum(dtype=wide) for (chunk,) in self.chunks()]).sum()

    def _of_dtype(self, made: torch.Tensor) -> torch.Tensor:
        if made.dtype is not self.dtype:
            raise self._other_dtype(made.dtype)
        return made

    def _other_dtype(self, dtype: torch.dtype) -> RequestError:
        return RequestError(
            f"{dtype} does not fit a PagedTensor of {self.dtype}: make it with dtype={dtype}, or use .tensor() first"
        )

    def _flat(self, begin: int, end: int) -> torch.Tensor:
        """Copy flat elements; of the pages that hold them only."""
        flat = torch.empty(end - begin, dtype=self.dtype)
        first, last = begin // self.page_elements, -(-end // self.page_elements)
        for index, (view,) in enumerate(self.memory.scan_pages(self.address, first, last), start=first):
            at = index * self.page_elements
            low, high = max(begin, at), min(end, at + self.page_elements)
            flat[low - begin : high - begin] = view.view(self.dtype)[low - at : high - at]
        return flat

    def _range(self, rows: int | slice) -> tuple[int, int, tuple[int, ...]]:
        """Return the flat range of rows, and the shape they have."""
        inner = self.shape[1:]
        size = math.prod(inner)
        if isinstance(rows, int):
            row = range(self.shape[0])[rows]
            return row * size, (row + 1) * size, tuple(inner)
        begin, end, step = rows.indices(self.shape[0])
        if step != 1:
            raise RequestError(f"a PagedTensor is sliced with step 1, not {step}: use .tensor() first")
        return begin * size, max(begin, end) * size, (max(0, end - begin), *inner)

    def _borders(self) -> Iterator[tuple[int, int]]:
        for begin in range(0, self.numel(), self.page_elements):
            yield begin, min(self.numel(), begin + self.page_elements)

    def _filler(self, make: Make) -> Fill:
        borders = self._borders()

        def fill(index: int, page: torch.Tensor) -> None:
            begin, end = next(borders)
            page.view(self.dtype)[: end - begin] = make(begin, end)

        return fill

    def _refuse_other(self, other: Any) -> None:
        if other.shape != self.shape or other.dtype is not self.dtype or other.memory is not self.memory:
            raise RequestError(
                f"tensors of one shape, dtype and memory are wanted, not {tuple(other.shape)} {other.dtype} beside "
                f"{tuple(self.shape)} {self.dtype}"
            )
