"""The name of all that shapes KV bytes besides the tokens: pages of another name are never used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from tokenvm.kernels.native import NUMERICS_ID
from tokenvm.kernels.paging import PartGeometry
from tokenvm.memory.cpu import crc32c
from tokenvm.models.weights.pack import LoadedModel


def fingerprint(model: LoadedModel, geometry: PartGeometry, positions: int) -> bytes:
    """Name all that shapes KV bytes besides the tokens: weights, dtype, rope, block_tokens, layout and numerics.

    `positions`: how many tokens a sequence may have, by which the factors of a longrope are chosen.
    """
    digest = hashlib.blake2b(digest_size=16)
    rope = model.spec.rope.resolved(positions)
    digest.update(repr((model.spec, rope, geometry, geometry.layout_id, NUMERICS_ID)).encode())
    for address, nbytes in _weights(model):
        digest.update(crc32c(address, nbytes).to_bytes(4, "little"))
    return digest.digest()


def _weights(model: LoadedModel) -> Iterator[tuple[int, int]]:
    """Address and bytes of every weight that keys and values depend on."""
    layers = model.weights.layers
    matrices = [matrix for layer in layers for matrix in layer.matrices]
    for matrix in (*matrices, model.weights.ends.embedding):
        yield matrix.storage.data_ptr(), matrix.nbytes
    for vector in (vector for layer in layers for vector in layer.vectors):
        yield vector.data_ptr(), vector.nbytes
    for tensor in model.weights.borrowed:
        yield tensor.data_ptr(), tensor.nbytes
