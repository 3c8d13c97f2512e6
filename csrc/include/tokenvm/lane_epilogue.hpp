// What becomes of the sums of a matrix product, sixteen outputs at a time. Include after lane_rowwise.hpp.
#pragma once

#include "tokenvm/kernels.hpp"

namespace tokenvm {
namespace {

// Sums of rows from job row `row` on and of outputs from 16 * `block` on, in fp32 [rows][stride]. For kSiluMul
// `block` counts gates, and each row of sums holds `blocks` / 2 blocks of gates, then as many of ups.
struct Sums {
  const float* data;
  std::int64_t stride, row, rows, block, blocks;
};

inline void store_sums(const LinearJob& job, const Sums& sums) {
  const std::int64_t valid = job.outputs - sums.block * 16;
  for (std::int64_t r = 0; r < sums.rows; ++r) {
    float* out = static_cast<float*>(job.out) + (sums.row + r) * job.outputs + sums.block * 16;
    for (std::int64_t i = 0; i < sums.blocks * 16 && i < valid; i += 16)
      store_some(out + i, load(sums.data + r * sums.stride + i), valid - i);
  }
}

inline void add_sums(const LinearJob& job, const Sums& sums) {
  const std::int64_t valid = job.outputs - sums.block * 16;
  for (std::int64_t r = 0; r < sums.rows; ++r) {
    float* out = static_cast<float*>(job.out) + (sums.row + r) * job.outputs + sums.block * 16;
    for (std::int64_t i = 0; i < sums.blocks * 16 && i < valid; i += 16)
      store_some(out + i, add(load_some(out + i, valid - i), load(sums.data + r * sums.stride + i)), valid - i);
  }
}

// One group of sixteen of what a product will read, at `column` of `width`, as prepare_rows would lay it out.
inline void store_prepared(const LinearJob& job, std::int64_t row, std::int64_t column, std::int64_t width, Lanes a) {
  if (job.layout == RowLayout::kTiles)
    return store_bf16(static_cast<bf16*>(job.out) + row / 16 * 16 * width + column / 32 * 512 + row % 16 * 32 +
                      column % 32, a);
  bf16 rounded[16];
  store_bf16(rounded, a);
  store(static_cast<float*>(job.out) + row * width + column, load_bf16(rounded));
}

inline void gate_sums(const LinearJob& job, const Sums& sums) {
  const std::int64_t half = sums.blocks * 8, width = job.outputs / 2;
  for (std::int64_t r = 0; r < sums.rows; ++r) {
    const float* gate = sums.data + r * sums.stride;
    const std::int64_t first = (sums.row + r) * width + sums.block * 16;
    for (std::int64_t i = 0; i < half; i += 16) {
      const Lanes value = silu_times(load(gate + i), load(gate + half + i));
      if (job.prepared)
        store_prepared(job, sums.row + r, sums.block * 16 + i, width, value);
      else
        store_as(job.out, first + i, value, 16, job.narrow);
    }
  }
}

inline void apply_epilogue(const LinearJob& job, const Sums& sums) {
  if (job.epilogue == Epilogue::kSiluMul) return gate_sums(job, sums);
  job.epilogue == Epilogue::kAdd ? add_sums(job, sums) : store_sums(job, sums);
}

}  // namespace
}  // namespace tokenvm
