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
      _mm512_store_si512(target, _mm512_maskz_loadu_epi16(mask, x + r * columns + k));
    }
  }
}

// One block of M x N tiles at (row tile m, output block n).
template <int M, int N>
inline void linear_block(const LinearJob& job, std::int64_t m, std::int64_t n) {
  const std::int64_t padded = ceil_to(job.columns, 32), next = 16 * padded;
  const TileRun a{static_cast<const bf16*>(job.rows) + m * next, kTile, 64, next};
  const TileRun b{static_cast<const bf16*>(job.weight) + n * next, kTile, 64, next};
  multiply<M, N>(a, b, padded / 32);
  const std::int64_t rows = job.row_end - m * 16, columns = job.outputs - n * 16;
  float* out = job.out + m * 16 * job.outputs + n * 16;
  if (columns >= N * 16) return store_tiles<M, N>(out, job.outputs, rows);
  alignas(64) float block[M * 16 * N * 16];
  store_tiles<M, N>(block, N * 16, M * 16);
  for (std::int64_t r = 0; r < rows && r < M * 16; ++r)
    std::memcpy(out + r * job.outputs, block + r * N * 16, static_cast<std::size_t>(columns) * 4);
}

inline void tile_linear(const LinearJob& job) {
  const TileScope tiles;
  const std::int64_t first = job.row_begin / 16, last = ceil_to(job.row_end, 16) / 16;
  std::int64_t n = job.block_begin;
  if (last - first == 1)
    for (; n + 4 <= job.block_end; n += 4) linear_block<1, 4>(job, first, n);
  const std::int64_t start = n;
  for (std::int64_t m = first; m < last; m += 2) {
    const bool rows = m + 2 <= last;
    for (n = start; n + 2 <= job.block_end; n += 2) rows ? linear_block<2, 2>(job, m, n) : linear_block<1, 2>(job, m, n);
    if (n < job.block_end) rows ? linear_block<2, 1>(job, m, n) : linear_block<1, 1>(job, m, n);
  }
}

}  // namespace
}  // namespace tokenvm
