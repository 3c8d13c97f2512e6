// Packed matrices and products with them.
#pragma once

#include <cstdint>

#include "tokenvm/numerics.hpp"

namespace tokenvm {

// bf16-k32n16: [N/16][K/32][16 pairs][16 outputs][2]; fp32-n16: [N/16][K][16 outputs]. Padded with zeros.
enum class PackFormat : int { kBf16 = 0, kFp32 = 1 };

std::int64_t packed_bytes(PackFormat format, std::int64_t outputs, std::int64_t columns);

// weight: [outputs][columns] row-major, bf16 or fp32. packed: packed_bytes() bytes, 64-byte aligned.
void pack(PackFormat format, const void* weight, std::int64_t outputs, std::int64_t columns, void* packed);

// What a product multiplies: rows of the format's dtype, [rows][columns], or, `prepared`, what rms_norm_rows or
// linear_silu_mul_rows wrote for as many rows under the same instruction set.
struct Operand {
  const void* data;
  bool prepared = false;

  Operand(const void* plain) : data(plain) {}
  Operand(const void* rows, bool is_prepared) : data(rows), prepared(is_prepared) {}
};

// Bytes that each prepared row takes at most; rows come sixteen at a time.
std::int64_t prepared_row_bytes(PackFormat format, std::int64_t columns);

// out[r][n] fp32 = x[r] . w[n]; x: [rows][columns] in the format's dtype. out must not overlap x.
void linear(PackFormat format, Operand x, std::int64_t rows, const void* packed, std::int64_t outputs,
            std::int64_t columns, float* out);

// out[r][n] += x[r] . w[n]; the same bits as linear and an addition after it.
void linear_add(PackFormat format, Operand x, std::int64_t rows, const void* packed, std::int64_t outputs,
                std::int64_t columns, float* out);

// out[r][n] = silu(x[r] . w[n]) * (x[r] . w[outputs/2 + n]), bf16 if `narrow`, else fp32; the same bits as
// linear and silu_mul after it. outputs is even.
void linear_silu_mul(PackFormat format, Operand x, std::int64_t rows, const void* packed, std::int64_t outputs,
                     std::int64_t columns, void* out, bool narrow);

// rms_norm and linear_silu_mul that leave prepared rows of the format's dtype: the same values, where the next product
// reads them.
void rms_norm_rows(PackFormat format, float* x, const float* weight, float eps, std::int64_t rows, std::int64_t width,
                   void* out);
void linear_silu_mul_rows(PackFormat format, Operand x, std::int64_t rows, const void* packed, std::int64_t outputs,
                          std::int64_t columns, void* out);

// out[i] fp32 = w[ids[i]]. Throws std::invalid_argument if an id is not in [0, outputs).
void gather_rows(PackFormat format, const void* packed, std::int64_t outputs, std::int64_t columns,
                 const std::int64_t* ids, std::int64_t count, float* out);

}  // namespace tokenvm
