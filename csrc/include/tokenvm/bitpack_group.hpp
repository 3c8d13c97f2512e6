// 64 bfloat16 values apart and together again, in the instruction set this file is compiled for.
//
//   split_group   values -> 64 exponents and 64 rests (the sign, then seven bits of mantissa)
//   group_planes  exponents -> three planes: bit i of plane b is bit b of value i's code, min(top - exponent, 7)
//   join_group    rests and planes -> values with the exponent top - code
//
// Exponents are counted modulo 256.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tokenvm {
namespace {

#if defined(__AVX512BW__)

inline void split_group(const std::uint8_t* values, std::uint8_t* exponents, std::uint8_t* rests) {
  for (int i = 0; i < 64; i += 32) {
    const __m512i v = _mm512_loadu_si512(values + 2 * i);
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi16(v, 8), _mm512_set1_epi16(0x80));
    const __m512i rest = _mm512_or_si512(_mm512_and_si512(v, _mm512_set1_epi16(0x7f)), sign);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(exponents + i), _mm512_cvtepi16_epi8(_mm512_srli_epi16(v, 7)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rests + i), _mm512_cvtepi16_epi8(rest));
  }
}

inline void group_planes(const std::uint8_t* exponents, std::uint8_t top, std::uint64_t planes[3]) {
  const __m512i depth =
      _mm512_sub_epi8(_mm512_set1_epi8(static_cast<char>(top)), _mm512_loadu_si512(exponents));
  const __m512i code = _mm512_min_epu8(depth, _mm512_set1_epi8(7));
  for (int b = 0; b < 3; ++b) planes[b] = _mm512_test_epi8_mask(code, _mm512_set1_epi8(static_cast<char>(1 << b)));
}

inline __m512i near_exponents(const std::uint64_t planes[3], std::uint8_t top) {
  __m512i exponent = _mm512_set1_epi8(static_cast<char>(top));
  for (int b = 0; b < 3; ++b)
    exponent = _mm512_mask_sub_epi8(exponent, planes[b], exponent, _mm512_set1_epi8(static_cast<char>(1 << b)));
  return exponent;
}

inline void join_exponents(const std::uint8_t* rests, __m512i exponent, std::uint8_t* values) {
  const __m512i rest = _mm512_loadu_si512(rests);
  const __m512i mantissa = _mm512_set1_epi8(0x7f);
  // (a & mask) | (b & ~mask), bit by bit: 0xca.
  const __m512i low = _mm512_ternarylogic_epi64(mantissa, rest, _mm512_slli_epi16(exponent, 7), 0xca);
  const __m512i high = _mm512_ternarylogic_epi64(mantissa, _mm512_srli_epi16(exponent, 1), rest, 0xca);
  const __m512i even = _mm512_unpacklo_epi8(low, high), odd = _mm512_unpackhi_epi8(low, high);
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  _mm512_storeu_si512(values, _mm512_permutex2var_epi64(even, first, odd));
  _mm512_storeu_si512(values + 64, _mm512_permutex2var_epi64(even, second, odd));
}

inline void join_group(const std::uint8_t* rests, const std::uint64_t planes[3], std::uint8_t top,
                       std::uint8_t* values) {
  join_exponents(rests, near_exponents(planes, top), values);
}

#elif defined(__AVX2__)

// The low byte of each of 32 words, in order.
inline __m256i low_bytes(__m256i a, __m256i b) {
  const __m256i byte = _mm256_set1_epi16(0xff);
  const __m256i mixed = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
  return _mm256_permute4x64_epi64(mixed, 0xd8);
}

inline __m256i load256(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store256(std::uint8_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

inline void split_group(const std::uint8_t* values, std::uint8_t* exponents, std::uint8_t* rests) {
  const __m256i mantissa = _mm256_set1_epi8(0x7f);
  for (int i = 0; i < 64; i += 32) {
    const __m256i a = load256(values + 2 * i), b = load256(values + 2 * i + 32);
    const __m256i low = low_bytes(a, b), high = low_bytes(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
    store256(exponents + i, low_bytes(_mm256_srli_epi16(a, 7), _mm256_srli_epi16(b, 7)));
    store256(rests + i, _mm256_or_si256(_mm256_and_si256(low, mantissa), _mm256_andnot_si256(mantissa, high)));
  }
}

inline void group_planes(const std::uint8_t* exponents, std::uint8_t top, std::uint64_t planes[3]) {
  for (int b = 0; b < 3; ++b) planes[b] = 0;
  for (int i = 0; i < 64; i += 32) {
    const __m256i depth = _mm256_sub_epi8(_mm256_set1_epi8(static_cast<char>(top)), load256(exponents + i));
    const __m256i code = _mm256_min_epu8(depth, _mm256_set1_epi8(7));
    for (int b = 0; b < 3; ++b) {  // movemask takes bit 7 of each byte
      const auto bits = static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(code, 7 - b)));
      planes[b] |= static_cast<std::uint64_t>(bits) << i;
    }
  }
}

// 0xff in byte i where bit i is set.
inline __m256i spread_bits(std::uint32_t bits) {
  const __m256i of_byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
  const __m256i own = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), of_byte);
  return _mm256_cmpeq_epi8(_mm256_and_si256(own, bit), bit);
}

inline void join_group(const std::uint8_t* rests, const std::uint64_t planes[3], std::uint8_t top,
                       std::uint8_t* values) {
  const __m256i mantissa = _mm256_set1_epi8(0x7f);
  for (int i = 0; i < 64; i += 32) {
    const __m256i rest = load256(rests + i);
    __m256i exponent = _mm256_set1_epi8(static_cast<char>(top));
    for (int b = 0; b < 3; ++b) {
      const __m256i set = spread_bits(static_cast<std::uint32_t>(planes[b] >> i));
      exponent = _mm256_sub_epi8(exponent, _mm256_and_si256(set, _mm256_set1_epi8(static_cast<char>(1 << b))));
    }
    const __m256i low = _mm256_or_si256(_mm256_and_si256(mantissa, rest),
                                        _mm256_andnot_si256(mantissa, _mm256_slli_epi16(exponent, 7)));
    const __m256i high = _mm256_or_si256(_mm256_and_si256(mantissa, _mm256_srli_epi16(exponent, 1)),
                                         _mm256_andnot_si256(mantissa, rest));
    const __m256i even = _mm256_unpacklo_epi8(low, high), odd = _mm256_unpackhi_epi8(low, high);
    store256(values + 2 * i, _mm256_permute2x128_si256(even, odd, 0x20));
    store256(values + 2 * i + 32, _mm256_permute2x128_si256(even, odd, 0x31));
  }
}

#else

inline void split_group(const std::uint8_t* values, std::uint8_t* exponents, std::uint8_t* rests) {
  std::uint16_t wide[64];
  std::memcpy(wide, values, sizeof wide);
  for (int i = 0; i < 64; ++i) {
    exponents[i] = static_cast<std::uint8_t>(wide[i] >> 7);
    rests[i] = static_cast<std::uint8_t>((wide[i] >> 8 & 0x80) | (wide[i] & 0x7f));
  }
}

inline void group_planes(const std::uint8_t* exponents, std::uint8_t top, std::uint64_t planes[3]) {
  planes[0] = planes[1] = planes[2] = 0;
  for (int i = 0; i < 64; ++i) {
    const auto depth = static_cast<std::uint8_t>(top - exponents[i]);
    const std::uint64_t code = depth < 7 ? depth : 7;
    for (int b = 0; b < 3; ++b) planes[b] |= (code >> b & 1) << i;
  }
}

// 1 in byte i where bit i is set.
inline std::uint64_t spread_bits(std::uint64_t eight) {
  const std::uint64_t own = eight * 0x0101010101010101u & 0x8040201008040201u;
  return (own + 0x00406070787c7e7fu) >> 7 & 0x0101010101010101u;
}

inline void join_group(const std::uint8_t* rests, const std::uint64_t planes[3], std::uint8_t top,
                       std::uint8_t* values) {
  std::uint8_t codes[64];
  for (int i = 0; i < 8; ++i) {
    std::uint64_t eight = 0;
    for (int b = 0; b < 3; ++b) eight |= spread_bits(planes[b] >> 8 * i & 0xff) << b;
    std::memcpy(codes + 8 * i, &eight, sizeof eight);
  }
  std::uint16_t wide[64];
  for (int i = 0; i < 64; ++i) {
    const auto exponent = static_cast<std::uint8_t>(top - codes[i]);
    wide[i] = static_cast<std::uint16_t>((rests[i] & 0x80) << 8 | exponent << 7 | (rests[i] & 0x7f));
  }
  std::memcpy(values, wide, sizeof wide);
}

#endif

}  // namespace
}  // namespace tokenvm
