// Matrix products over packed weights. Include after dot.hpp.
#pragma once

#include "tokenvm/kernels.hpp"

namespace tokenvm {
namespace {

// Rows widened to fp32 and padded with zeros to a multiple of 32 columns.
inline void widen_rows(const bf16* x, std::int64_t columns, std::int64_t row_begin, std::int64_t row_end,
                       void* rows) {
  const std::int64_t padded = ceil_to(columns, 32);
  for (std::int64_t r = row_begin; r < row_end; ++r) {
    float* target = static_cast<float*>(rows) + r * padded;
    std::int64_t k = 0;
    for (; k + 16 <= columns; k += 16) store(target + k, load_bf16(x + r * columns + k));
    for (; k < columns; ++k) target[k] = widen(x[r * columns + k]);
    for (; k < padded; ++k) target[k] = 0.0f;
  }
}

constexpr std::int64_t kAhead = 64;  // steps between a weight and what is fetched meanwhile

template <class Dot>
inline void linear_rows(const LinearJob& job, std::int64_t stride, std::int64_t step) {
  using Weight = typename Dot::Weight;
  const std::int64_t block_stride = stride * 16;
  for (std::int64_t r = job.row_begin; r < job.row_end; r += kRowBlock) {
    const std::int64_t rows = job.row_end - r < kRowBlock ? job.row_end - r : kRowBlock;
    const std::int64_t first = job.block_begin * 16;
    const std::int64_t last = job.block_end * 16 < job.outputs ? job.block_end * 16 : job.outputs;
    const Weight* weight = static_cast<const Weight*>(job.weight) + job.block_begin * block_stride;
    const Weights weights{weight, step, block_stride, weight + kAhead * step};
    dot<Dot>(rows, {static_cast<const float*>(job.rows) + r * stride, stride}, weights, 0, stride,
             {job.out + r * job.outputs + first, job.outputs, last - first});
  }
}

inline void linear_bf16(const LinearJob& job) { linear_rows<DotBf16>(job, ceil_to(job.columns, 32), 32); }
inline void linear_fp32(const LinearJob& job) { linear_rows<DotFp32>(job, job.columns, 16); }

}  // namespace
}  // namespace tokenvm
