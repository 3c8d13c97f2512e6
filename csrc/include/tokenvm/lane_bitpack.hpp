// The bitpack codec over groups of 64 values. What a group needs of the instruction set comes from bitpack_group.hpp.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "tokenvm/bitpack.hpp"
#include "tokenvm/bitpack_group.hpp"
#include "tokenvm/nibbles.hpp"

namespace tokenvm {
namespace {

static_assert(std::endian::native == std::endian::little, "planes are 64-bit words, the first value in bit 0");

constexpr int kGroup = 64;
constexpr int kGroups = static_cast<int>(kBitpackValues) / kGroup;
constexpr unsigned kNearBelow = 7;   // depths 0..6 have a code of three bits
constexpr unsigned kFarBelow = 19;   // depths 7..18 and -3..-1 have one nibble
constexpr unsigned kHighest = 3;
constexpr unsigned kFar = 15;        // a nibble that announces a whole exponent

// The sections of a stored part.
template <class Byte>
struct Sections {
  Byte* rests;
  Byte* planes;
  Byte* tops;
  Byte* escapes;
  std::uint64_t escape_room;

  Sections(Byte* stored, std::uint64_t nbytes, std::uint64_t room)
      : rests(stored),
        planes(rests + nbytes / 2),
        tops(planes + nbytes / (2 * kBitpackValues) * kBitpackPlaneBytes),
        escapes(stored + bitpack_fixed_bytes(nbytes)),
        escape_room(room - bitpack_fixed_bytes(nbytes)) {}
};

// How many of the 256 exponents lie `depth` or more below the highest.
inline unsigned count_below(const std::uint8_t* exponents, std::uint8_t highest, unsigned depth) {
  std::uint16_t count = 0;
  for (std::uint64_t i = 0; i < kBitpackValues; ++i)
    count = static_cast<std::uint16_t>(count + (static_cast<std::uint8_t>(highest - exponents[i]) >= depth));
  return count;
}

// The top exponent, at most three below the highest, for which the escapes take the fewest nibbles; the higher of equals.
inline std::uint8_t choose_top(const std::uint8_t* exponents) {
  const std::uint8_t highest = *std::max_element(exponents, exponents + kBitpackValues);
  unsigned best = ~0u, chosen = 0;
  for (unsigned lower = 0; lower <= kHighest && lower <= highest; ++lower) {
    const unsigned above = lower ? kBitpackValues - count_below(exponents, highest, lower) : 0;
    const unsigned nibbles = above + count_below(exponents, highest, lower + kNearBelow) +
                             2 * count_below(exponents, highest, lower + kFarBelow);
    if (nibbles < best) best = nibbles, chosen = lower;
  }
  return static_cast<std::uint8_t>(highest - chosen);
}

inline void put_escape(NibbleWriter& escapes, std::uint8_t top, std::uint8_t exponent) {
  const unsigned raised = static_cast<std::uint8_t>(top - exponent + kHighest);
  if (raised < kHighest) return escapes.put(raised);
  if (raised < kFarBelow + kHighest) return escapes.put(raised - kNearBelow);
  escapes.put(kFar);
  escapes.put(exponent & 15u);
  escapes.put(exponent >> 4);
}

// How far below top + 3 an exponent lies that is one nibble; kFar says nothing of the kind.
alignas(16) constexpr std::uint8_t kRaised[16] = {0, 1, 2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 0};

inline std::uint8_t next_escape(NibbleReader& escapes, std::uint8_t top) {
  const unsigned nibble = escapes.next();
  if (nibble != kFar) return static_cast<std::uint8_t>(top + kHighest - kRaised[nibble]);
  const unsigned low = escapes.next();
  return static_cast<std::uint8_t>(low | escapes.next() << 4);
}

#if defined(__AVX512VBMI2__)
// Unpacks `count` nibbles from the next on to what they say of kRaised, beginning at raised[escapes.upper()]; up to 64
// bytes more are written. False if one of them, or a neighbour, is kFar. Reads no byte beyond those that hold them.
inline bool unpack_nibbles(const NibbleReader& escapes, std::uint64_t count, std::uint8_t* raised) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kRaised)));
  const std::uint64_t nbytes = (escapes.upper() + count + 1) / 2;
  std::uint64_t far = 0;
  for (std::uint64_t i = 0; i < nbytes; i += 32) {
    const std::uint64_t rest = nbytes - i;
    const auto mask = rest < 32 ? static_cast<__mmask32>((1u << rest) - 1) : ~__mmask32{0};
    const __m512i wide = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, escapes.byte() + i));
    const __m512i both = _mm512_or_si512(wide, _mm512_slli_epi16(wide, 4));
    const __m512i nibbles = _mm512_and_si512(both, _mm512_set1_epi8(15));
    far |= _mm512_cmpeq_epi8_mask(nibbles, _mm512_set1_epi8(kFar));
    _mm512_storeu_si512(raised + 2 * i, _mm512_shuffle_epi8(table, nibbles));
  }
  return far == 0;
}
#endif

// Lists the places of the bits set in `mask`, plus `base`, and returns past the last. Always writes three, so that
// three or fewer, which is nearly always, cost no branch that depends on the data.
inline std::uint16_t* list_bits(std::uint64_t mask, unsigned base, std::uint16_t* places) {
  std::uint16_t* end = places + std::popcount(mask);
  do {
    for (int i = 0; i < 3; ++i, mask &= mask - 1) {
      asm("" : "+r"(mask));  // or the compiler makes it branches again
      *places++ = static_cast<std::uint16_t>(base + static_cast<unsigned>(std::countr_zero(mask)));
    }
  } while (mask);
  return end;
}

inline std::uint64_t bitpack_encode_lanes(const void* part, std::uint64_t nbytes, void* stored, std::uint64_t room) {
  if (room < bitpack_fixed_bytes(nbytes)) return 0;
  const Sections<std::uint8_t> to(static_cast<std::uint8_t*>(stored), nbytes, room);
  NibbleWriter escapes(to.escapes, to.escape_room);
  const auto* values = static_cast<const std::uint8_t*>(part);
  for (std::uint64_t block = 0; block < nbytes / (2 * kBitpackValues) && !escapes.overflowed(); ++block) {
    alignas(64) std::uint8_t exponents[kBitpackValues];
    for (int g = 0; g < kGroups; ++g, values += 2 * kGroup)
      split_group(values, exponents + g * kGroup, to.rests + block * kBitpackValues + g * kGroup);
    const std::uint8_t top = to.tops[block] = choose_top(exponents);
    for (int g = 0; g < kGroups; ++g) {
      std::uint64_t planes[3];
      group_planes(exponents + g * kGroup, top, planes);
      std::memcpy(to.planes + (block * kGroups + g) * sizeof planes, planes, sizeof planes);
      for (std::uint64_t rest = planes[0] & planes[1] & planes[2]; rest; rest &= rest - 1)
        put_escape(escapes, top, exponents[g * kGroup + std::countr_zero(rest)]);
    }
  }
  return escapes.overflowed() ? 0 : bitpack_fixed_bytes(nbytes) + escapes.nbytes();
}

constexpr std::uint64_t kBlocksAtOnce = 4;

#if defined(__AVX512VBMI2__)
// Where every escape of some blocks is one nibble: unpacks them, and lets each group expand its own into their places.
// False, and nothing is done, where one may not be or too few are left.
inline bool expand_blocks(const std::uint8_t* rests, const std::uint8_t* packed, const std::uint8_t* tops,
                          std::uint64_t blocks, NibbleReader& escapes, std::uint8_t* values) {
  std::uint64_t masks[kBlocksAtOnce * kGroups], count = 0;
  for (unsigned g = 0; g < blocks * kGroups; ++g) {
    std::uint64_t planes[3];
    std::memcpy(planes, packed + g * sizeof planes, sizeof planes);
    masks[g] = planes[0] & planes[1] & planes[2];
    count += static_cast<std::uint64_t>(std::popcount(masks[g]));
  }
  std::uint8_t raised[kBlocksAtOnce * kBitpackValues + 2 * kGroup];
  if (count > escapes.left() || !unpack_nibbles(escapes, count, raised)) return false;
  const std::uint8_t* next = raised + escapes.upper();
  for (unsigned g = 0; g < blocks * kGroups; ++g) {
    std::uint64_t planes[3];
    std::memcpy(planes, packed + g * sizeof planes, sizeof planes);
    const std::uint8_t top = tops[g / kGroups];
    const __m512i own = _mm512_maskz_expand_epi8(masks[g], _mm512_loadu_si512(next));
    const __m512i highest = _mm512_set1_epi8(static_cast<char>(top + kHighest));
    join_exponents(rests + g * kGroup, _mm512_mask_sub_epi8(near_exponents(planes, top), masks[g], highest, own),
                   values + 2 * g * kGroup);
    next += std::popcount(masks[g]);
  }
  escapes.skip(count);
  return true;
}
#else
inline bool expand_blocks(const std::uint8_t*, const std::uint8_t*, const std::uint8_t*, std::uint64_t, NibbleReader&,
                          std::uint8_t*) {
  return false;
}
#endif

// Joins the values of some blocks as if none were an escape, then gives the escapes their exponents. Over several blocks,
// so that the end of a loop is seldom guessed wrong; with a reader of its own, so that it stays in registers.
inline NibbleReader decode_blocks(const std::uint8_t* rests, const std::uint8_t* packed, const std::uint8_t* tops,
                                  std::uint64_t blocks, NibbleReader escapes, std::uint8_t* values) {
  std::uint16_t places[kBlocksAtOnce * kBitpackValues + 3];
  std::uint16_t* end = places;
  for (unsigned g = 0; g < blocks * kGroups; ++g) {
    std::uint64_t planes[3];
    std::memcpy(planes, packed + g * sizeof planes, sizeof planes);
    join_group(rests + g * kGroup, planes, tops[g / kGroups], values + 2 * g * kGroup);
    end = list_bits(planes[0] & planes[1] & planes[2], g * kGroup, end);
  }
  for (const std::uint16_t* place = places; place < end; ++place) {
    const unsigned rest = rests[*place], exponent = next_escape(escapes, tops[*place / kBitpackValues]);
    const auto value = static_cast<std::uint16_t>((rest & 0x80) << 8 | exponent << 7 | (rest & 0x7f));
    std::memcpy(values + 2 * *place, &value, sizeof value);
  }
  return escapes;
}

inline bool bitpack_decode_lanes(const void* stored, std::uint64_t room, void* part, std::uint64_t nbytes) {
  if (room < bitpack_fixed_bytes(nbytes)) return false;
  const Sections<const std::uint8_t> from(static_cast<const std::uint8_t*>(stored), nbytes, room);
  NibbleReader escapes(from.escapes, from.escape_room);
  auto* values = static_cast<std::uint8_t*>(part);
  const std::uint64_t blocks = nbytes / (2 * kBitpackValues);
  for (std::uint64_t block = 0; block < blocks; block += kBlocksAtOnce) {
    const std::uint8_t *rests = from.rests + block * kBitpackValues, *tops = from.tops + block;
    const std::uint8_t* planes = from.planes + block * kBitpackPlaneBytes;
    const std::uint64_t some = std::min(kBlocksAtOnce, blocks - block);
    std::uint8_t* target = values + 2 * block * kBitpackValues;
    if (!expand_blocks(rests, planes, tops, some, escapes, target))
      escapes = decode_blocks(rests, planes, tops, some, escapes, target);
  }
  return !escapes.overrun();
}

}  // namespace
}  // namespace tokenvm
