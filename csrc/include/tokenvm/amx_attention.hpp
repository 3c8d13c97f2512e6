// One page of attention on tile registers; the same bits as lane_attention.hpp. Include after it.
#pragma once

#include "tokenvm/amx_tiles.hpp"
#include "tokenvm/scratch.hpp"

namespace tokenvm {
namespace {

// Below this many query rows the page is read faster by lanes.
constexpr std::int64_t kTileThreshold = 8;

inline __m512 widen_half(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __mmask16 lanes_between(std::int64_t begin, std::int64_t end) {
  const auto below = [](std::int64_t n) { return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u; };
  return static_cast<__mmask16>(below(end) & ~below(begin));
}

// exp_lanes of N vectors that are <= 0, and +0 in the lanes that are not `visible`. Step by step over all
// vectors, so that neighbouring instructions do not wait for one another.
template <int N>
inline void exp_visible(Lanes (&x)[N], const __mmask16 (&visible)[N]) {
  Lanes r[N], y[N];
  __m512i exponent[N];
  __mmask16 kept[N];
  for (int i = 0; i < N; ++i) {
    const Reduced part = reduce_exponent(x[i]);
    r[i] = part.r;
    exponent[i] = _mm512_slli_epi32(_mm512_castps_si512(part.shifted.v), 23);
    kept[i] = _mm512_mask_cmp_ps_mask(visible[i], x[i].v, _mm512_set1_ps(kExpFloor), _CMP_GT_OQ);
  }
  exp_reduced(r, y);
  for (int i = 0; i < N; ++i)
    x[i].v = _mm512_castsi512_ps(_mm512_maskz_add_epi32(kept[i], _mm512_castps_si512(y[i].v), exponent[i]));
}

inline __mmask16 seen_lanes(const PageJob& job, std::int64_t row, std::int64_t token) {
  return lanes_between(job.begin[row] - token, job.end[row] - token);
}

// The row's peak over the tokens [first, last), multiples of 32. The scale is positive, so scaling and
// rounding keep the order: the largest dot gives the largest score. Whole: the row sees all of [first, last).
template <bool Whole>
inline float peak_of(const PageJob& job, std::int64_t row, const float* dots, std::int64_t first,
                     std::int64_t last) {
  __m512 high = _mm512_set1_ps(kMinusInfinity), higher = high;
  for (std::int64_t t = first; t < last; t += 32) {
    const __m512 a = _mm512_loadu_ps(dots + t), b = _mm512_loadu_ps(dots + t + 16);
    high = Whole ? _mm512_max_ps(a, high) : _mm512_mask_max_ps(high, seen_lanes(job, row, t), a, high);
    higher = Whole ? _mm512_max_ps(b, higher)
                   : _mm512_mask_max_ps(higher, seen_lanes(job, row, t + 16), b, higher);
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(high, higher)) * job.scale;
}

// The weights of 16 N tokens from `token` on, as bf16 into N/2 tiles; adds them to the partial sums of the
// mass.
template <bool Whole, int N>
inline void weigh_some(const PageJob& job, std::int64_t row, const float* dots, std::int64_t token,
                       __m512& mass, bf16* weights) {
  const Lanes scale = broadcast(job.scale), peak = broadcast(job.peak[row]);
  Lanes x[N];
  __mmask16 visible[N];
  for (int i = 0; i < N; ++i) {
    x[i] = sub(mul(load(dots + token + 16 * i), scale), peak);
    visible[i] = Whole ? __mmask16(0xffff) : seen_lanes(job, row, token + 16 * i);
  }
  exp_visible(x, visible);
  for (int i = 0; i < N; i += 2) {
    const __m512i p = (__m512i)_mm512_cvtne2ps_pbh(x[i + 1].v, x[i].v);
    _mm512_store_si512(weights + i / 2 * kTile, p);
    mass = _mm512_add_ps(mass, widen_half(_mm512_castsi512_si256(p)));
    mass = _mm512_add_ps(mass, widen_half(_mm512_extracti64x4_epi64(p, 1)));
  }
}

// The row's weights into its place in tiles [tokens/32][16][32]; returns the 16 partial sums of its mass.
template <bool Whole>
inline __m512 weigh(const PageJob& job, std::int64_t row, const float* dots, Span span, bf16* weights) {
  __m512 mass = _mm512_setzero_ps();
  std::int64_t t = span.begin;
  for (; t + 64 <= span.end; t += 64, weights += 2 * kTile)
    weigh_some<Whole, 4>(job, row, dots, t, mass, weights);
  if (t < span.end) weigh_some<Whole, 2>(job, row, dots, t, mass, weights);
  return mass;
}

// The softmax of up to 32 rows over [first, last). Three loops over the rows, so that the chains of one row
// overlap those of the next. Rows from `rows` on exist in the tiles only and get weight 0, like rows that see
// nothing.
inline void softmax_tiles(const PageJob& job, std::int64_t row, std::int64_t rows, std::int64_t padded,
                          const float* dots, Span span, bf16* weights) {
  const std::int64_t T = job.tokens, next = T / 32 * kTile;
  const auto blind = [&](std::int64_t r) { return r >= rows || job.begin[row + r] >= job.end[row + r]; };
  const auto whole = [&](std::int64_t r) {
    return job.begin[row + r] <= span.begin && job.end[row + r] >= span.end;
  };
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* line = dots + r * T;
    job.peak[row + r] = blind(r)   ? kMinusInfinity
                        : whole(r) ? peak_of<true>(job, row + r, line, span.begin, span.end)
                                   : peak_of<false>(job, row + r, line, span.begin, span.end);
  }
  __m512 mass[32];
  for (std::int64_t r = 0; r < padded; ++r) {
    bf16* target = weights + r / 16 * next + r % 16 * 32;
    mass[r] = _mm512_setzero_ps();
    if (blind(r))
      for (std::int64_t t = span.begin; t < span.end; t += 32, target += kTile)
        _mm512_store_si512(target, _mm512_setzero_si512());
    else if (whole(r))
      mass[r] = weigh<true>(job, row + r, dots + r * T, span, target);
    else
      mass[r] = weigh<false>(job, row + r, dots + r * T, span, target);
  }
  for (std::int64_t r = 0; r < rows; ++r) job.mass[row + r] = sum_lanes({mass[r]});
}

// Row tiles [tile, tile + M) of the job.
template <int M>
inline void attend_tiles(const PageJob& job, std::int64_t tile, bf16* weights) {
  const std::int64_t D = job.head_dim, T = job.tokens, first = tile * 16;
  const std::int64_t rows = job.rows - first < M * 16 ? job.rows - first : M * 16;
  const Span span = visible_span(job, first, rows);
  if (span.begin >= span.end) {
    for (std::int64_t r = first; r < first + rows; ++r) job.peak[r] = kMinusInfinity, job.mass[r] = 0.0f;
    return;
  }
  const std::int64_t t0 = floor_to(span.begin, 32), t1 = ceil_to(span.end, 32), next = T / 32 * kTile;
  float* scores = job.scores + first * T;
  const TileRun q{job.q_tiles + first * D, kTile, 64, 16 * D};
  for (std::int64_t t = t0; t < t1; t += 32) {
    const TileRun keys{static_cast<const bf16*>(job.keys) + 2 * t, 32 * T, 4 * T, 32};
    multiply<M, 2>(q, keys, D / 32);
    store_tiles<M, 2>(scores + t, T, M * 16);
  }
  softmax_tiles(job, first, rows, M * 16, scores, {t0, t1}, weights);
  const TileRun p{weights, kTile, 64, next};
  for (std::int64_t d = 0; d < D; d += 32) {
    const TileRun values{static_cast<const bf16*>(job.values) + t0 * D + 2 * d, 32 * D, 4 * D, 32};
    multiply<M, 2>(p, values, (t1 - t0) / 32);
    store_tiles<M, 2>(job.acc + first * D + d, D, rows);
  }
}

inline void attend_page_tiles(const PageJob& job) {
  if (job.head_dim % 32 != 0 || job.tokens % 32 != 0 || job.rows < kTileThreshold)
    return attend_page<DotBf16>(job);
  thread_local Scratch scratch;
  bf16* weights = scratch.reserve<bf16>(static_cast<std::size_t>(32 * job.tokens));
  const TileScope tiles;
  const std::int64_t count = ceil_to(job.rows, 16) / 16;
  std::int64_t tile = 0;
  for (; tile + 2 <= count; tile += 2) attend_tiles<2>(job, tile, weights);
  if (tile < count) attend_tiles<1>(job, tile, weights);
}

}  // namespace
}  // namespace tokenvm
