// Matrix products over packed weights. Include after dot.hpp and lane_epilogue.hpp.
#pragma once

#include "tokenvm/kernels.hpp"

namespace tokenvm {
namespace {

// Rows widened to fp32 and padded with zeros to a multiple of 32 columns.
inline void widen_rows(const bf16* x, std::int64_t columns, std::int64_t row_begin, std::int64_t row_end,
                       void* rows) {
  const std::int64_t padded = ceil_to(columns, 32);
  for (std::int64_t r = row_begin; r < row_end; ++r, x += columns) {
    float* target = static_cast<float*>(rows) + r * padded;
    std::int64_t k = 0;
    for (; k + 16 <= columns; k += 16) store(target + k, load_bf16(x + k));
    for (; k < columns; ++k) target[k] = widen(x[k]);
    for (; k < padded; ++k) target[k] = 0.0f;
  }
}

constexpr std::int64_t kAhead = 64;  // steps between a weight and what is fetched meanwhile

// One row block of a job: straight to its place, or by way of a few sums whose epilogue follows at once.
template <class Dot>
inline void sum_rows(const LinearJob& job, std::int64_t row, std::int64_t rows, std::int64_t stride,
                         std::int64_t step) {
  using Weight = typename Dot::Weight;
  const std::int64_t size = stride * 16;
  const bool gated = job.epilogue == Epilogue::kSiluMul;
  const Rows x{static_cast<const float*>(job.rows) + row * stride, stride};
  alignas(64) float sums[kRowBlock * 32];
  for (std::int64_t n = job.block_begin; n < job.block_end; n += gated ? 1 : 2) {
    const std::int64_t blocks = gated || n + 1 < job.block_end ? 2 : 1;
    const Weight* weight = static_cast<const Weight*>(job.weight) + n * size;
    const Weights weights{weight, step, gated ? job.outputs / 32 * size : size, weight + kAhead * step};
    dot<Dot>(rows, x, weights, 0, stride, {sums, 32, blocks * 16});
    apply_epilogue(job, {sums, 32, row, rows, n, blocks});
  }
}

template <class Dot>
inline void store_rows(const LinearJob& job, std::int64_t row, std::int64_t rows, std::int64_t stride,
                        std::int64_t step) {
  using Weight = typename Dot::Weight;
  const std::int64_t size = stride * 16, first = job.block_begin * 16;
  const std::int64_t last = job.block_end * 16 < job.outputs ? job.block_end * 16 : job.outputs;
  const Weight* weight = static_cast<const Weight*>(job.weight) + job.block_begin * size;
  const Rows x{static_cast<const float*>(job.rows) + row * stride, stride};
  float* out = static_cast<float*>(job.out) + row * job.outputs + first;
  dot<Dot>(rows, x, {weight, step, size, weight + kAhead * step}, 0, stride, {out, job.outputs, last - first});
}

template <class Dot>
inline void linear_rows(const LinearJob& job, std::int64_t stride, std::int64_t step) {
  for (std::int64_t r = job.row_begin; r < job.row_end; r += kRowBlock) {
    const std::int64_t rows = job.row_end - r < kRowBlock ? job.row_end - r : kRowBlock;
    job.epilogue == Epilogue::kStore ? store_rows<Dot>(job, r, rows, stride, step)
                                 : sum_rows<Dot>(job, r, rows, stride, step);
  }
}

inline void linear_bf16(const LinearJob& job) { linear_rows<DotBf16>(job, ceil_to(job.columns, 32), 32); }
inline void linear_fp32(const LinearJob& job) { linear_rows<DotFp32>(job, job.columns, 16); }

}  // namespace
}  // namespace tokenvm
