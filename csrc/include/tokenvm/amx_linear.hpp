// bf16 matrix products on tile registers; the same bits as lane_linear.hpp.
#pragma once

#include "tokenvm/amx_tiles.hpp"
#include "tokenvm/kernels.hpp"

namespace tokenvm {
namespace {

// Rows as tiles [rows/16][columns/32][16][32], zeros where there is no row or column.
inline void tile_rows(const bf16* x, std::int64_t columns, std::int64_t row_begin, std::int64_t row_end,
                      void* rows) {
  const std::int64_t padded = ceil_to(columns, 32);
  for (std::int64_t r = row_begin; r < ceil_to(row_end, 16); ++r) {
    bf16* target = static_cast<bf16*>(rows) + r / 16 * 16 * padded + r % 16 * 32;
    for (std::int64_t k = 0; k < padded; k += 32, target += kTile) {
      const std::int64_t valid = r >= row_end ? 0 : columns - k < 32 ? columns - k : 32;
      const __mmask32 mask = valid == 32 ? ~0u : (1u << valid) - 1u;
      _mm512_store_si512(target, _mm512_maskz_loadu_epi16(mask, x + (r - row_begin) * columns + k));
    }
  }
}

// Cache lines that a block of products fetches beside its own loads: so many of each weight in every step.
struct Ahead {
  const char* data[2];
  std::int64_t lines;
  bool soon;  // wanted within the block, else by a later one

  template <int N>
  void fetch(std::int64_t step) const {
    for (int n = 0; n < N; ++n)
      for (std::int64_t i = 0; i < lines; ++i) {
        const char* line = data[n] + (step * lines + i) * 64;
        soon ? __builtin_prefetch(line, 0, 3) : __builtin_prefetch(line, 0, 2);
      }
  }
};

// The sums of the last block of products: they go through the nearest cache, since lines of a wide matrix are
// far apart, and their epilogue runs row by row while the tile unit is at the next block.
class Pending {
 public:
  explicit Pending(const LinearJob& job) : job_(job) {}
  ~Pending() { apply(sums_.rows); }
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;

  // The epilogue of at most so many rows.
  void apply(std::int64_t rows) {
    rows = rows < sums_.rows ? rows : sums_.rows;
    if (rows == 0) return;
    apply_epilogue(job_, {sums_.data, sums_.stride, sums_.row, rows, sums_.block, sums_.blocks});
    sums_.data += rows * sums_.stride, sums_.row += rows, sums_.rows -= rows;
  }

  // Asks for the lines that the sums of rows from `row` on and of the blocks from n on will change.
  template <int N>
  void bring_near(std::int64_t row, std::int64_t n) {
    const bool gated = job_.epilogue == Epilogue::kSiluMul;
    const std::int64_t width = gated ? job_.outputs / 2 : job_.outputs, size = gated && job_.narrow ? 2 : 4;
    const std::int64_t rows = job_.row_end - row;
    near_rows_ = rows < 32 ? rows : 32, near_bytes_ = (gated ? N / 2 : N) * 16 * size;
    near_ = static_cast<char*>(job_.out) + (row * width + n * 16) * size, pitch_ = width * size;
    if (!job_.prepared) return;
    near_ = static_cast<char*>(job_.out) + (row * width + n / 2 * kTile) * 2, pitch_ = 64;
    if (n % 2 == 1) near_rows_ = 0;  // the other half of the same lines
  }

  // The lines of at most so many rows.
  void bring_some(std::int64_t rows) {
    for (; rows > 0 && near_rows_ > 0; --rows, --near_rows_, near_ += pitch_)
      for (std::int64_t at = 0; at < near_bytes_; at += 64) _m_prefetchw(near_ + at);
  }

  // Takes the M x N tiles in the registers, for row tile m and block n of the job.
  template <int M, int N>
  void take(std::int64_t m, std::int64_t n) {
    apply(sums_.rows);
    turn_ ^= 1;
    store_tiles<M, N>(space_[turn_], N * 16, M * 16);
    const std::int64_t rows = job_.row_end - m * 16;
    sums_ = {space_[turn_], N * 16, m * 16, rows < M * 16 ? rows : M * 16, n, N};
  }

 private:
  const LinearJob& job_;
  Sums sums_{nullptr, 0, 0, 0, 0, 0};
  int turn_ = 0;
  char* near_ = nullptr;
  std::int64_t pitch_ = 0, near_bytes_ = 0, near_rows_ = 0;
  alignas(64) float space_[2][1024];
};

// 2 x N tiles from zero into the registers 0 to 2N - 1, row-major. KeepWeights: the weights come again at
// once, so they stay in the nearest cache and the rows pass it by.
template <int N, bool KeepWeights>
inline void sum_pairs(const bf16* a, std::int64_t next, const bf16* const (&b)[2], std::int64_t chunks,
                      const Ahead& ahead, Pending& pending) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t k = 0; k < chunks; ++k, a += kTile) {
    ahead.fetch<N>(k);
    if constexpr (KeepWeights)
      _tile_stream_loadd(4, a, 64);
    else
      _tile_loadd(4, a, 64);
    _tile_loadd(6, b[0] + k * kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (KeepWeights)
      _tile_stream_loadd(5, a + next, 64);
    else
      _tile_loadd(5, a + next, 64);
    if constexpr (N == 1) _tile_dpbf16ps(1, 5, 6);
    if constexpr (N == 2) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, b[1] + k * kTile, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    pending.bring_some(2);
    pending.apply(2);
  }
}

// 1 x N tiles from zero into the registers 0 to N - 1. Weights that come from memory and are used once.
template <int N>
inline void sum_row(const bf16* a, const bf16* const (&b)[4], std::int64_t chunks, std::int64_t lines) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t k = 0; k < chunks; ++k, a += kTile) {
    for (int n = 0; n < N; ++n) {
      const char* tile = reinterpret_cast<const char*>(b[n] + k * kTile) + kAheadBytes;
      for (std::int64_t line = 0; line < lines; ++line) __builtin_prefetch(tile + line * 64);
    }
    _tile_loadd(4, a, 64);
    _tile_loadd(5, b[0] + k * kTile, 64);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (N >= 2) {
      _tile_loadd(6, b[1] + k * kTile, 64);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (N == 4) {
      _tile_loadd(5, b[2] + k * kTile, 64);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(6, b[3] + k * kTile, 64);
      _tile_dpbf16ps(3, 4, 6);
    }
  }
}

// The blocks of a job that are computed together: N of them from block n on, or N / 2 gates from n on and
// their ups.
template <int N>
struct Columns {
  const bf16* data[N < 2 ? 2 : N];
  std::int64_t block;

  Columns(const LinearJob& job, std::int64_t n) : block(n) {
    const std::int64_t size = 16 * ceil_to(job.columns, 32);
    const std::int64_t ups = job.outputs / 32, half = job.epilogue == Epilogue::kSiluMul ? N / 2 : N;
    for (int i = 0; i < N; ++i)
      data[i] = static_cast<const bf16*>(job.weight) + (i < half ? n + i : n + ups + i - half) * size;
  }
};

template <int N, bool KeepWeights>
inline void pair_of_rows(const LinearJob& job, std::int64_t m, const Columns<N>& columns, const Ahead& ahead,
                         Pending& pending) {
  const std::int64_t padded = ceil_to(job.columns, 32), next = 16 * padded;
  const bf16* a = static_cast<const bf16*>(job.rows) + m * next;
  pending.bring_near<N>(m * 16, columns.block);
  asm volatile("" ::: "memory");  // the compiler does not know that a tile load reads what was just written
  sum_pairs<N, KeepWeights>(a, next, columns.data, padded / 32, ahead, pending);
  pending.take<2, N>(m, columns.block);
}

template <int N>
inline void row_of_tiles(const LinearJob& job, std::int64_t m, const Columns<N>& columns, std::int64_t lines,
                         Pending& pending) {
  const std::int64_t padded = ceil_to(job.columns, 32);
  const bf16* b[4] = {columns.data[0], columns.data[1 % N], columns.data[2 % N], columns.data[3 % N]};
  asm volatile("" ::: "memory");
  sum_row<N>(static_cast<const bf16*>(job.rows) + m * 16 * padded, b, padded / 32, lines);
  pending.take<1, N>(m, columns.block);
}

// What pair number `pair` of `pairs` pairs of row tiles fetches. Many pairs: each a share of the next weights.
// Few: the first one its own weights, as they come.
template <int N>
inline Ahead ahead_of(const LinearJob& job, const Columns<N>& columns, std::int64_t pair, std::int64_t pairs) {
  const std::int64_t chunks = ceil_to(job.columns, 32) / 32, share = (16 + pairs - 1) / pairs;
  const std::int64_t next = (job.epilogue == Epilogue::kSiluMul ? 1 : N) * chunks * kTile * 2;
  const bool soon = pairs < 8;
  const std::int64_t lines = soon ? (pair == 0 ? 16 : 0) : (pair * share < 16 ? share : 0);
  Ahead ahead{{nullptr, nullptr}, lines, soon};
  for (int n = 0; n < N; ++n)
    ahead.data[n] = reinterpret_cast<const char*>(columns.data[n]) +
                    (soon ? kAheadBytes : next + pair * share * 64 * chunks);
  return ahead;
}

// All rows of a job against N blocks.
template <int N>
inline void all_rows(const LinearJob& job, std::int64_t n, Pending& pending) {
  const std::int64_t first = job.row_begin / 16, last = ceil_to(job.row_end, 16) / 16, pairs = (last - first) / 2;
  const Columns<N> columns(job, n);
  for (std::int64_t p = 0; p < pairs; ++p) {
    const Ahead ahead = ahead_of<N>(job, columns, p, pairs);
    pairs == 1 ? pair_of_rows<N, false>(job, first, columns, ahead, pending)
               : pair_of_rows<N, true>(job, first + 2 * p, columns, ahead, pending);
  }
  if (first + 2 * pairs < last) row_of_tiles<N>(job, last - 1, columns, pairs == 0 ? 16 : 0, pending);
}

inline void tile_linear(const LinearJob& job) {
  const TileScope tiles;
  Pending pending(job);
  const bool gated = job.epilogue == Epilogue::kSiluMul, one = job.row_end - job.row_begin <= 16;
  const std::int64_t four = gated ? 2 : 4, two = gated ? 1 : 2;
  std::int64_t n = job.block_begin;
  for (; one && n + four <= job.block_end; n += four)
    row_of_tiles<4>(job, job.row_begin / 16, Columns<4>(job, n), 16, pending);
  for (; n + two <= job.block_end; n += two) all_rows<2>(job, n, pending);
  if (n < job.block_end) all_rows<1>(job, n, pending);
}

}  // namespace
}  // namespace tokenvm
