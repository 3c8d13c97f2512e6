// Sixteen float lanes in one AVX-512 register.
#pragma once

#include <immintrin.h>

#include "tokenvm/numerics.hpp"

namespace tokenvm {
namespace {

constexpr int kRowBlock = 4;
constexpr int kColumnBlock = 2;

struct Lanes {
  __m512 v;
};

// Call it when lanes were used and other code goes on.
inline void clear_lanes() { _mm256_zeroupper(); }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes broadcast(float value) { return {_mm512_set1_ps(value)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes div(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline void load_pairs(const bf16* p, Lanes& even, Lanes& odd) {
  const __m512i pairs = _mm512_loadu_si512(p);
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline Lanes load_bf16(const bf16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
// The bits of the nearest bf16 in the upper half of every lane; the lower half is not cleared.
inline __m512i nearest_bf16(Lanes a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}
inline Lanes round_bf16(Lanes a) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(nearest_bf16(a), upper))};
}
inline void store_bf16(bf16* p, Lanes a) {
  const __m256i packed = _mm512_cvtepi32_epi16(_mm512_srli_epi32(nearest_bf16(a), 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}
inline Lanes scale_exponent(Lanes value, Lanes shifted) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(value.v), exponent))};
}
inline Lanes fraction(Lanes x) { return {_mm512_reduce_ps(x.v, 0x09)}; }
inline Lanes scale_by_floor(Lanes value, Lanes x) { return {_mm512_scalef_ps(value.v, x.v)}; }
inline Lanes keep_above(Lanes value, Lanes x, float limit) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_GT_OQ), value.v)};
}
inline Lanes keep_lanes(Lanes a, std::int64_t begin, std::int64_t end, float other) {
  const auto below = [](std::int64_t n) { return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u; };
  return {_mm512_mask_mov_ps(_mm512_set1_ps(other), static_cast<__mmask16>(below(end) & ~below(begin)), a.v)};
}
inline float sum_lanes(Lanes a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float max_lanes(Lanes a) { return _mm512_reduce_max_ps(a.v); }

}  // namespace
}  // namespace tokenvm
