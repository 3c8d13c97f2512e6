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

// The weights of one row over the tokens [first, last), multiples of 32, as bf16 into the row's place in tiles
// [tokens/32][16][32]. The scale is positive, so scaling and rounding keep the order: the peak may be found before it.
inline void softmax_tile_row(const PageJob& job, std::int64_t row, const float* dots, std::int64_t first,
                             std::int64_t last, bf16* weights) {
  const std::int64_t begin = job.begin[row], end = job.end[row];
  __m512 high = _mm512_set1_ps(kMinusInfinity);
  for (std::int64_t t = first; t < last; t += 16)
    high = _mm512_mask_max_ps(high, lanes_between(begin - t, end - t), _mm512_loadu_ps(dots + t), high);
  const float peak = begin < end ? _mm512_reduce_max_ps(high) * job.scale : kMinusInfinity;
  const Lanes scale = broadcast(job.scale), shift = broadcast(begin < end ? peak : 0.0f);
  __m512 mass = _mm512_setzero_ps();
  for (std::int64_t t = first; t < last; t += 32, weights += kTile) {
    const Lanes low = exp_lanes(sub(mul(load(dots + t), scale), shift));
    const Lanes upper = exp_lanes(sub(mul(load(dots + t + 16), scale), shift));
    const __m512 a = _mm512_maskz_mov_ps(lanes_between(begin - t, end - t), low.v);
    const __m512 b = _mm512_maskz_mov_ps(lanes_between(begin - t - 16, end - t - 16), upper.v);
    const __m512i p = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
    _mm512_store_si512(weights, p);
    mass = _mm512_add_ps(mass, widen_half(_mm512_castsi512_si256(p)));
    mass = _mm512_add_ps(mass, widen_half(_mm512_extracti64x4_epi64(p, 1)));
  }
  job.peak[row] = peak;
  job.mass[row] = sum_lanes({mass});
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
  for (std::int64_t r = 0; r < M * 16; ++r) {
    bf16* row = weights + r / 16 * next + r % 16 * 32;
    if (r < rows)
      softmax_tile_row(job, first + r, scores + r * T, t0, t1, row);
    else
      for (std::int64_t t = t0; t < t1; t += 32, row += kTile) _mm512_store_si512(row, _mm512_setzero_si512());
  }
  const TileRun p{weights, kTile, 64, next};
  for (std::int64_t d = 0; d < D; d += 32) {
    const TileRun values{static_cast<const bf16*>(job.values) + t0 * D + 2 * d, 32 * D, 4 * D, 32};
    multiply<M, 2>(p, values, (t1 - t0) / 32);
    store_tiles<M, 2>(job.acc + first * D + d, D, rows);
  }
}

inline void attend_page_tiles(const PageJob& job) {
  if (job.head_dim % 32 != 0 || job.tokens % 32 != 0 || job.rows < kTileThreshold) return attend_page<DotBf16>(job);
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
