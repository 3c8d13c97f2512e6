// The softmax of sixteen query rows over one page, in the place of their scores; the same bits as
// lane_attention.hpp. Include after it.
#pragma once

#include <immintrin.h>

#include "tokenvm/kernels.hpp"

namespace tokenvm {
namespace {

constexpr std::int64_t kUnitRows = 16;

// Scores of sixteen rows: row r, token t at scores[r * pitch + t - first], as the tile products left them. The
// weights take their place: row r, tokens [first + 32 c, first + 32 c + 32) as bf16 in the 64 bytes from
// float r * pitch + 16 c on.
struct Scores {
  float* data;
  std::int64_t pitch;
  std::int64_t rows;            // rows that exist; the others are left as they are
  std::int64_t first, last;     // tokens, multiples of 32; every token that a row sees lies between
  const std::int32_t* begin;    // row r sees [begin[r], end[r]); null if all rows see all of [first, last)
  const std::int32_t* end;
  float scale;
  float* peak;  // out, sixteen
  float* mass;  // out, sixteen
};

inline __mmask16 lanes_between(std::int64_t begin, std::int64_t end) {
  const auto below = [](std::int64_t n) { return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u; };
  return static_cast<__mmask16>(below(end) & ~below(begin));
}

// The lanes of sixteen tokens from `token` on that the row sees.
template <bool Whole>
inline __mmask16 seen_lanes(const Scores& s, std::int64_t row, std::int64_t token) {
  return Whole ? __mmask16(0xffff) : lanes_between(s.begin[row] - token, s.end[row] - token);
}

// out[r] = combination of all lanes of v[r], in the order of sum_lanes: upper half with lower half, 16 -> 8 -> 4 -> 2 -> 1.
template <class Combine>
inline __m512 combine_lanes(const __m512 (&v)[16], Combine combine) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)
    a[i] = combine(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44), _mm512_shuffle_f32x4(v[i], v[i + 8], 0xee));
  for (int i = 0; i < 4; ++i)
    b[i] = combine(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
  for (int i = 0; i < 2; ++i)
    c[i] = combine(_mm512_shuffle_ps(b[i], b[i + 2], 0x44), _mm512_shuffle_ps(b[i], b[i + 2], 0xee));
  const __m512 d = combine(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd));
  // Lane 4 p + q now belongs to row 8 (p & 1) + 4 (p >> 1) + 2 (q & 1) + (q >> 1).
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  return _mm512_permutexvar_ps(order, d);
}

// The largest dot of every lane.
template <bool Whole>
inline __m512 highest(const Scores& s, std::int64_t row) {
  const float* dots = s.data + row * s.pitch - s.first;
  __m512 high = _mm512_set1_ps(kMinusInfinity), higher = high;
  for (std::int64_t t = s.first; t < s.last; t += 32) {
    high = _mm512_mask_max_ps(high, seen_lanes<Whole>(s, row, t), _mm512_loadu_ps(dots + t), high);
    higher = _mm512_mask_max_ps(higher, seen_lanes<Whole>(s, row, t + 16), _mm512_loadu_ps(dots + t + 16), higher);
  }
  return _mm512_max_ps(high, higher);
}

// Finds the peaks; returns what is to be added to the scaled dots of each row.
template <bool Whole>
inline __m512 find_peaks(const Scores& s) {
  __m512 high[16];
  for (int r = 0; r < 16; ++r) high[r] = r < s.rows ? highest<Whole>(s, r) : _mm512_setzero_ps();
  const __m512 top = combine_lanes(high, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
  const __m512 peak = _mm512_mul_ps(top, _mm512_set1_ps(s.scale));
  _mm512_storeu_ps(s.peak, peak);
  return _mm512_xor_ps(_mm512_mul_ps(peak, _mm512_set1_ps(kLog2E)), _mm512_set1_ps(-0.0f));
}

// exp2_lanes of N vectors, step by step over all of them, so that neighbouring instructions do not wait for
// one another.
template <int N>
inline void exp2_some(__m512 (&x)[N]) {
  __m512 f[N], y[N];
  for (int i = 0; i < N; ++i) f[i] = _mm512_reduce_ps(x[i], 0x09);
  for (int i = 0; i < N; ++i)
    y[i] = _mm512_fmadd_ps(_mm512_set1_ps(float_of(0x3da04af5)), f[i], _mm512_set1_ps(float_of(0x3e67bd33)));
  for (int i = 0; i < N; ++i) y[i] = _mm512_fmadd_ps(y[i], f[i], _mm512_set1_ps(float_of(0x3f320754)));
  for (int i = 0; i < N; ++i) y[i] = _mm512_fmadd_ps(y[i], f[i], _mm512_set1_ps(1.0f));
  for (int i = 0; i < N; ++i) x[i] = _mm512_scalef_ps(y[i], x[i]);
}

// The weights of 16 N tokens from `token` on; adds them to the even and the odd groups of the mass.
template <bool Whole, int N>
inline void weigh_some(const Scores& s, std::int64_t row, std::int64_t token, __m512 offset, __m512 (&mass)[2]) {
  float* line = s.data + row * s.pitch;
  const float* dots = line + token - s.first;
  bf16* weights = reinterpret_cast<bf16*>(line) + token - s.first;
  const __m512 factor = _mm512_set1_ps(s.scale * kLog2E);
  __m512 x[N];
  for (int i = 0; i < N; ++i) x[i] = _mm512_fmadd_ps(_mm512_loadu_ps(dots + 16 * i), factor, offset);
  exp2_some(x);
  for (int i = 0; i < N; ++i) {
    if (!Whole) x[i] = _mm512_maskz_mov_ps(seen_lanes<Whole>(s, row, token + 16 * i), x[i]);
    mass[i % 2] = _mm512_add_ps(mass[i % 2], x[i]);
  }
  for (int i = 0; i < N; i += 2)
    _mm512_storeu_si512(weights + 16 * i, (__m512i)_mm512_cvtne2ps_pbh(x[i + 1], x[i]));
}

// Weighs one row, which sees something; returns the sixteen partial sums of its mass.
template <bool Whole>
__attribute__((always_inline)) inline __m512 weigh_row(const Scores& s, std::int64_t row, float add) {
  const __m512 offset = _mm512_set1_ps(add);
  __m512 mass[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  std::int64_t t = s.first;
  for (; t + 64 <= s.last; t += 64) weigh_some<Whole, 4>(s, row, t, offset, mass);
  if (t < s.last) weigh_some<Whole, 2>(s, row, t, offset, mass);
  return _mm512_add_ps(mass[0], mass[1]);
}

// Softmax of all rows, `between()` after each. The weights of a row that sees nothing, whose peak becomes -inf,
// are of no consequence: a row of weights only reaches the same row of results, and that is not taken.
template <bool Whole, class Between>
inline void softmax_rows(const Scores& s, Between between) {
  alignas(64) float offset[16];
  _mm512_store_ps(offset, find_peaks<Whole>(s));
  __m512 mass[16];
  for (std::int64_t r = 0; r < 16; ++r) mass[r] = _mm512_setzero_ps();
  for (std::int64_t r = 0; r < s.rows; ++r) {
    if (Whole || s.begin[r] < s.end[r]) mass[r] = weigh_row<Whole>(s, r, offset[r]);
    asm volatile("" ::: "memory");  // tile loads and stores stay between rows
    between();
  }
  _mm512_storeu_ps(s.mass, combine_lanes(mass, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); }));
}

}  // namespace
}  // namespace tokenvm
