// Sixteen float lanes in two AVX registers.
#pragma once

#include <immintrin.h>

#include "tokenvm/numerics.hpp"

namespace tokenvm {
namespace {

constexpr int kRowBlock = 2;
constexpr int kColumnBlock = 1;

struct Lanes {
  __m256 lo, hi;
};

// Call it when lanes were used and other code goes on.
inline void clear_lanes() { _mm256_zeroupper(); }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Lanes a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline Lanes broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Lanes div(Lanes a, Lanes b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }

inline __m256i load_raw(const bf16* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256 even_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 odd_of(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline void load_pairs(const bf16* p, Lanes& even, Lanes& odd) {
  const __m256i lo = load_raw(p), hi = load_raw(p + 16);
  even = {even_of(lo), even_of(hi)};
  odd = {odd_of(lo), odd_of(hi)};
}
inline Lanes load_bf16(const bf16* p) {
  const __m256i raw = load_raw(p);
  const __m256i lo = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(raw));
  const __m256i hi = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(raw, 1));
  return {even_of(lo), even_of(hi)};
}
inline __m256i nearest_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}
inline Lanes round_bf16(Lanes a) { return {odd_of(nearest_bf16(a.lo)), odd_of(nearest_bf16(a.hi))}; }
inline void store_bf16(bf16* p, Lanes a) {
  const __m256i lo = _mm256_srli_epi32(nearest_bf16(a.lo), 16),
                hi = _mm256_srli_epi32(nearest_bf16(a.hi), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}
inline __m256 scale_half(__m256 value, __m256 shifted) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), exponent));
}
inline Lanes scale_exponent(Lanes value, Lanes shifted) {
  return {scale_half(value.lo, shifted.lo), scale_half(value.hi, shifted.hi)};
}
inline __m256 fraction_half(__m256 x) {
  const __m256 n = _mm256_floor_ps(x), nearest = _mm256_sub_ps(x, n);
  const __m256 error = _mm256_sub_ps(x, _mm256_add_ps(nearest, n));
  const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(error, _mm256_setzero_ps(), _CMP_LT_OQ));  // 0 or -1
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(nearest), above));
}
inline Lanes fraction(Lanes x) { return {fraction_half(x.lo), fraction_half(x.hi)}; }
inline __m256 scale_half_by_floor(__m256 value, __m256 x) {
  const __m256 n = _mm256_floor_ps(_mm256_max_ps(x, _mm256_set1_ps(-200.0f)));
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(227));
  const __m256 power = _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  return _mm256_mul_ps(_mm256_mul_ps(value, power), _mm256_set1_ps(0x1p-100f));
}
inline Lanes scale_by_floor(Lanes value, Lanes x) {
  return {scale_half_by_floor(value.lo, x.lo), scale_half_by_floor(value.hi, x.hi)};
}
inline Lanes keep_above(Lanes value, Lanes x, float limit) {
  const __m256 bound = _mm256_set1_ps(limit);
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, bound, _CMP_GT_OQ), value.lo),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, bound, _CMP_GT_OQ), value.hi)};
}
inline Lanes keep_lanes(Lanes a, std::int64_t begin, std::int64_t end, float other) {
  float f[16];
  store(f, a);
  for (int i = 0; i < 16; ++i) f[i] = i >= begin && i < end ? f[i] : other;
  return load(f);
}
inline float sum_lanes(Lanes a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float max_lanes(Lanes a) {
  float f[16];
  store(f, a);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) f[i] = f[i] > f[i + half] ? f[i] : f[i + half];
  return f[0];
}

}  // namespace
}  // namespace tokenvm
