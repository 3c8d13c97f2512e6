// Row-wise kernels over activations, all rows of a batch.
#pragma once

#include <cstdint>

namespace tokenvm {

// out = x / sqrt(mean(x^2) + eps) * weight; x: [rows][width]. If delta is not null, x += delta first, in
// place. out is bf16 if `narrow`, else fp32.
void rms_norm(float* x, const float* delta, const float* weight, float eps, std::int64_t rows,
              std::int64_t width, void* out, bool narrow);

// out[r] = silu(gate_up[r][:width]) * gate_up[r][width:]
void silu_mul(const float* gate_up, std::int64_t rows, std::int64_t width, void* out, bool narrow);

// out[r] = gelu(gate_up[r][:width]) * gate_up[r][width:], gelu by its tanh formula.
void gelu_mul(const float* gate_up, std::int64_t rows, std::int64_t width, void* out, bool narrow);

// rms_norm, in place, of each of the heads [first, first + count) of every row of x: [rows][heads][head_dim].
void norm_heads(float* x, std::int64_t rows, std::int64_t heads, std::int64_t first, std::int64_t count,
                std::int64_t head_dim, const float* weight, float eps);

// x[r] += added[r * stride]: stride is `width`, or 0 where every row gets the same.
void add_rows(float* x, const float* added, std::int64_t stride, std::int64_t rows, std::int64_t width);

// out = x rounded to bf16, to nearest even.
void cast_bf16(const float* x, std::int64_t count, std::uint16_t* out);

// Makes states empty: acc [rows][head_dim] and mass 0, peak -inf.
void reset_state(float* acc, float* peak, float* mass, std::int64_t rows, std::int64_t head_dim);

// out = acc / mass + 0, lse = peak + log(mass); a row that saw nothing gives 0 and -inf. acc:
// [rows][head_dim]. No lse is computed where it is null.
void finish_state(const float* acc, const float* peak, const float* mass, std::int64_t rows,
                  std::int64_t head_dim, void* out, bool narrow, float* lse);

}  // namespace tokenvm
