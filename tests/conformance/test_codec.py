"""What every lossless codec promises: the same bytes back, always, and no harm from bytes it never wrote."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenvm.memory.codec import CODECS, Bitpack, Codec, Identity, Lz4, Zstd, make_codec
from tokenvm.memory.layout import ALIGNMENT_BYTES
from tokenvm.vocab import Answer

Bytes = NDArray[np.uint8]
GUARD = 64
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.differing_executors],  # every codec inherits the same test
)


def bfloat16(values: NDArray[np.float32]) -> Bytes:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def like_kv(blocks: int, seed: int = 0) -> Bytes:
    """Normal values whose scale changes every 256 of them, as between the channels of a part."""
    rng = np.random.default_rng(seed)
    scales = np.exp2(rng.uniform(-1, 1, blocks * 8))
    return bfloat16((rng.standard_normal((blocks * 8, 256)) * scales[:, None]).ravel())


def random_bytes(blocks: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, blocks * ALIGNMENT_BYTES, dtype=np.uint8)


def special(blocks: int) -> Bytes:
    """Zeros of both signs, infinities, NaNs, denormals, the largest and the smallest."""
    words = [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x0001, 0x807F, 0x7F7F, 0xFF7F, 0x0080, 0x3F80]
    return np.resize(np.array(words, np.uint16), blocks * ALIGNMENT_BYTES // 2).view(np.uint8)


CONTENTS = {
    "kv": like_kv(6),
    "zeros": np.zeros(4 * ALIGNMENT_BYTES, np.uint8),
    "ones": np.full(ALIGNMENT_BYTES, 0xFF, np.uint8),
    "special": special(2),
    "random": random_bytes(3),
    "half full": np.concatenate([like_kv(1), np.zeros(ALIGNMENT_BYTES, np.uint8)]),
}


class Guarded:
    """An array between two guards that must stay as they are."""

    def __init__(self, nbytes: int) -> None:
        self._whole = np.full(nbytes + 2 * GUARD, 0xA5, np.uint8)
        self.inside = self._whole[GUARD : GUARD + nbytes]

    def check(self) -> None:
        assert (self._whole[:GUARD] == 0xA5).all()
        assert (self._whole[self._whole.size - GUARD :] == 0xA5).all()


class CodecConformance:
    """Inherit and give `codec`."""

    codec: Codec

    def stored(self, part: Bytes, room: int) -> tuple[Answer, Bytes]:
        stored = Guarded(room)
        before = part.copy()
        answer = self.codec.encode(part, stored.inside)
        stored.check()
        assert (part == before).all()
        return answer, stored.inside

    def decoded(self, stored: Bytes, nbytes: int) -> tuple[Answer, Bytes]:
        part = Guarded(nbytes)
        answer = self.codec.decode(stored, part.inside)
        part.check()
        return answer, part.inside

    def test_its_name_makes_it(self) -> None:
        assert type(make_codec(self.codec.name)) is type(self.codec)

    @pytest.mark.parametrize("blocks", [*range(1, 26), 100])
    def test_its_size_class_is_whole_blocks_and_never_more_than_a_part(self, blocks: int) -> None:
        stride = blocks * ALIGNMENT_BYTES
        room = self.codec.stored_bytes(stride)
        assert 0 < room <= stride
        assert room % ALIGNMENT_BYTES == 0

    @pytest.mark.parametrize("name", CONTENTS)
    def test_what_fits_comes_back(self, name: str) -> None:
        part = CONTENTS[name]
        for room in (part.size, 2 * part.size):  # incompressible bytes may need more than they have
            answer, stored = self.stored(part, room)
            if answer is Answer.HIT:
                answer, back = self.decoded(stored, part.size)
                assert answer is Answer.HIT
                assert (back == part).all()
        assert answer is Answer.HIT, "twice its bytes is room for any part"

    @pytest.mark.parametrize("name", CONTENTS)
    def test_equal_parts_are_stored_as_equal_bytes(self, name: str) -> None:
        part = CONTENTS[name]
        assert (self.stored(part, 2 * part.size)[1] == self.stored(part.copy(), 2 * part.size)[1]).all()

    @pytest.mark.parametrize("room", [0, 1, 3, 7, 353, 4096])
    def test_what_does_not_fit_is_said(self, room: int) -> None:
        assert self.stored(random_bytes(2), room)[0] is Answer.MISS

    def test_kv_fits_its_size_class(self) -> None:
        part = like_kv(24)
        answer, stored = self.stored(part, self.codec.stored_bytes(part.size))
        assert answer is Answer.HIT
        assert (self.decoded(stored, part.size)[1] == part).all()

    @FUZZ
    @given(st.binary(min_size=0, max_size=700), st.integers(0, 3), st.integers(0, 2**32 - 1))
    def test_any_bytes_decode_to_something_or_to_a_miss(self, data: bytes, more: int, seed: int) -> None:
        tail = np.random.default_rng(seed).integers(0, 256, more * 1000, dtype=np.uint8)
        given = np.concatenate([np.frombuffer(data, np.uint8), tail])
        assert self.decoded(given, ALIGNMENT_BYTES)[0] in (Answer.HIT, Answer.MISS)

    @FUZZ
    @given(
        st.lists(st.tuples(st.integers(0, 8191), st.integers(1, 255)), min_size=1, max_size=20), st.integers()
    )
    def test_damage_decodes_to_something_or_to_a_miss(self, flips: list[tuple[int, int]], cut: int) -> None:
        _, stored = self.stored(like_kv(1), 2 * ALIGNMENT_BYTES)
        for at, bits in flips:
            stored[at] ^= bits
        assert self.decoded(stored[: cut % stored.size], ALIGNMENT_BYTES)[0] in (Answer.HIT, Answer.MISS)

    @FUZZ
    @given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(1, 255))
    def test_any_exponents_come_back(self, seed: int, lowest: int, spread: int) -> None:
        rng = np.random.default_rng(seed)
        exponents = (lowest + rng.integers(0, spread, 2048)) % 256
        words = (exponents << 7 | rng.choice([0, 0x8000, 0x7F, 0x1234 & 0x807F], 2048)).astype(np.uint16)
        part = words.view(np.uint8)
        answer, stored = self.stored(part, 2 * part.size)
        assert answer is Answer.HIT
        assert (self.decoded(stored, part.size)[1] == part).all()


class TestIdentity(CodecConformance):
    codec = Identity()

    def test_kv_fits_its_size_class(self) -> None:
        super().test_kv_fits_its_size_class()
        assert self.codec.stored_bytes(98304) == 98304


class TestBitpack(CodecConformance):
    codec = Bitpack()


class TestZstd(CodecConformance):
    codec = Zstd()


class TestLz4(CodecConformance):
    codec = Lz4()


def test_every_codec_is_here() -> None:
    assert {case.codec.name for case in CodecConformance.__subclasses__()} == set(CODECS)
