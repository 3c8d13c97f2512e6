#include "tokenvm/linear.hpp"

#include <algorithm>
#include <stdexcept>

#include "tokenvm/kernels.hpp"
#include "tokenvm/norm.hpp"
#include "tokenvm/scratch.hpp"
#include "tokenvm/team.hpp"

namespace tokenvm {
namespace {

void pack_block_bf16(const bf16* weight, std::int64_t outputs, std::int64_t columns, std::int64_t block,
                     bf16* out) {
  const std::int64_t padded = ceil_to(columns, 32), first = block * 16;
  const std::int64_t valid = std::min<std::int64_t>(16, outputs - first);
  out += first * padded;
  if (valid < 16 || padded != columns) std::fill(out, out + 16 * padded, bf16{0});
  for (std::int64_t n = 0; n < valid; ++n) {
    const bf16* row = weight + (first + n) * columns;
    for (std::int64_t k = 0; k < columns; ++k) out[(k / 2 * 16 + n) * 2 + k % 2] = row[k];
  }
}

// Whole blocks move pairs, a chunk of 32 columns at a time so that the 1 KiB target stays in the nearest
// cache.
void pack_pairs(const bf16* weight, std::int64_t columns, std::int64_t block, bf16* out) {
  out += block * 16 * columns;
  for (std::int64_t k = 0; k < columns; k += 32)
    for (std::int64_t n = 0; n < 16; ++n) {
      const bf16* row = weight + (block * 16 + n) * columns + k;
      for (std::int64_t pair = 0; pair < 16; ++pair)
        std::memcpy(out + (k / 2 + pair) * 32 + n * 2, row + pair * 2, 4);
    }
}

void pack_block_fp32(const float* weight, std::int64_t outputs, std::int64_t columns, std::int64_t block,
                     float* out) {
  const std::int64_t first = block * 16, valid = std::min<std::int64_t>(16, outputs - first);
  out += first * columns;
  if (valid < 16) std::fill(out, out + 16 * columns, 0.0f);
  for (std::int64_t k = 0; k < columns; ++k)
    for (std::int64_t n = 0; n < valid; ++n) out[k * 16 + n] = weight[(first + n) * columns + k];
}

// Rows and blocks of outputs of one task: some blocks against a panel of rows that stays in the second-level
// cache, so that a weight is read once for a whole panel.
struct Cut {
  std::int64_t rows, blocks;
};

constexpr std::int64_t kPanelRows = 256, kPanelBytes = 1 << 20;

Cut cut(std::int64_t rows, std::int64_t columns, std::int64_t blocks) {
  const std::int64_t tasks = static_cast<std::int64_t>(team_size()) * 8;
  const std::int64_t most = std::clamp<std::int64_t>(floor_to(kPanelBytes / (columns * 2), 32), 32, kPanelRows);
  std::int64_t panels = ceil_to(rows, most) / most;
  while (panels * blocks / 2 < tasks && rows / panels > 64) ++panels;
  const std::int64_t stretch = std::clamp<std::int64_t>(floor_to(blocks / tasks, 2), 2, 8);
  return {ceil_to(ceil_to(rows, panels) / panels, 32), rows > 128 ? 2 : stretch};
}

void run_linear(void (*kernel)(const LinearJob&), const LinearJob& whole, std::int64_t rows) {
  const std::int64_t gates = whole.epilogue == Epilogue::kSiluMul ? 2 : 1;
  const std::int64_t blocks = ceil_to(whole.outputs / gates, 16) / 16;
  const Cut size = cut(rows, whole.columns, blocks);
  const std::int64_t row_tasks = ceil_to(rows, size.rows) / size.rows;
  const std::int64_t block_tasks = ceil_to(blocks, size.blocks) / size.blocks;
  parallel_for(static_cast<std::size_t>(row_tasks * block_tasks), [&](std::size_t task) {
    const std::int64_t t = static_cast<std::int64_t>(task), row = t / block_tasks, block = t % block_tasks;
    LinearJob job = whole;
    job.row_begin = row * size.rows, job.row_end = std::min(rows, job.row_begin + size.rows);
    job.block_begin = block * size.blocks, job.block_end = std::min(blocks, job.block_begin + size.blocks);
    kernel(job);
  });
}

void prepare_into(const Kernels& table, const bf16* x, std::int64_t rows, std::int64_t columns, void* prepared) {
  const std::int64_t step = rows > 64 ? 64 : 16;
  parallel_for(static_cast<std::size_t>(ceil_to(rows, step) / step), [&](std::size_t task) {
    const std::int64_t first = static_cast<std::int64_t>(task) * step;
    table.prepare_rows(x + first * columns, columns, first, std::min(rows, first + step), prepared);
  });
}

const void* prepare(const Kernels& table, const bf16* x, std::int64_t rows, std::int64_t columns) {
  thread_local Scratch scratch;
  char* prepared = scratch.reserve<char>(static_cast<std::size_t>(prepared_bytes(rows, columns)));
  prepare_into(table, x, rows, columns, prepared);
  return prepared;
}

constexpr std::int64_t kNormRows = 16;  // normalised, then laid out, while they are in the nearest cache

}  // namespace

std::int64_t packed_bytes(PackFormat format, std::int64_t outputs, std::int64_t columns) {
  if (format == PackFormat::kBf16) return ceil_to(outputs, 16) * ceil_to(columns, 32) * 2;
  return ceil_to(outputs, 16) * columns * 4;
}

void pack(PackFormat format, const void* weight, std::int64_t outputs, std::int64_t columns, void* packed) {
  parallel_for(static_cast<std::size_t>(ceil_to(outputs, 16) / 16), [&](std::size_t task) {
    const std::int64_t block = static_cast<std::int64_t>(task);
    const bool whole = columns % 32 == 0 && (block + 1) * 16 <= outputs;
    if (format == PackFormat::kFp32)
      pack_block_fp32(static_cast<const float*>(weight), outputs, columns, block,
                      static_cast<float*>(packed));
    else if (whole)
      pack_pairs(static_cast<const bf16*>(weight), columns, block, static_cast<bf16*>(packed));
    else
      pack_block_bf16(static_cast<const bf16*>(weight), outputs, columns, block, static_cast<bf16*>(packed));
  });
}

namespace {

void multiply_rows(PackFormat format, LinearJob job, std::int64_t rows, bool prepared) {
  if (rows == 0 || job.outputs == 0) return;
  const Kernels& table = kernels();
  if (format == PackFormat::kFp32) return run_linear(table.linear_fp32, job, rows);
  job.layout = table.row_layout;
  if (!prepared) job.rows = prepare(table, static_cast<const bf16*>(job.rows), rows, job.columns);
  run_linear(table.linear_bf16, job, rows);
}

}  // namespace

void linear(PackFormat format, Operand x, std::int64_t rows, const void* packed, std::int64_t outputs,
            std::int64_t columns, float* out) {
  multiply_rows(format, {x.data, packed, columns, outputs, 0, 0, 0, 0, Epilogue::kStore, false, out}, rows,
                x.prepared);
}

void linear_add(PackFormat format, Operand x, std::int64_t rows, const void* packed, std::int64_t outputs,
                std::int64_t columns, float* out) {
  multiply_rows(format, {x.data, packed, columns, outputs, 0, 0, 0, 0, Epilogue::kAdd, false, out}, rows,
                x.prepared);
}

void linear_silu_mul(PackFormat format, Operand x, std::int64_t rows, const void* packed, std::int64_t outputs,
                     std::int64_t columns, void* out, bool narrow) {
  if (outputs % 32 == 0)
    return multiply_rows(format, {x.data, packed, columns, outputs, 0, 0, 0, 0, Epilogue::kSiluMul, narrow, out},
                         rows, x.prepared);
  thread_local Scratch scratch;
  float* gate_up = scratch.reserve<float>(static_cast<std::size_t>(rows * outputs));
  linear(format, x, rows, packed, outputs, columns, gate_up);
  silu_mul(gate_up, rows, outputs / 2, out, narrow);
}

void linear_silu_mul_rows(PackFormat format, Operand x, std::int64_t rows, const void* packed, std::int64_t outputs,
                          std::int64_t columns, void* out) {
  const std::int64_t width = outputs / 2;
  if (format == PackFormat::kFp32) return linear_silu_mul(format, x, rows, packed, outputs, columns, out, false);
  if (width % 32 == 0)
    return multiply_rows(
        format, {x.data, packed, columns, outputs, 0, 0, 0, 0, Epilogue::kSiluMul, true, out, true}, rows, x.prepared);
  thread_local Scratch scratch;
  bf16* gated = scratch.reserve<bf16>(static_cast<std::size_t>(rows * width));
  linear_silu_mul(format, x, rows, packed, outputs, columns, gated, true);
  prepare_into(kernels(), gated, rows, width, out);
}

void rms_norm_rows(PackFormat format, float* x, const float* weight, float eps, std::int64_t rows, std::int64_t width,
                   void* out) {
  if (format == PackFormat::kFp32) return rms_norm(x, nullptr, weight, eps, rows, width, out, false);
  const Kernels& table = kernels();
  parallel_for(static_cast<std::size_t>(ceil_to(rows, kNormRows) / kNormRows), [&](std::size_t task) {
    thread_local Scratch scratch;
    bf16* normed = scratch.reserve<bf16>(static_cast<std::size_t>(kNormRows * width));
    const std::int64_t first = static_cast<std::int64_t>(task) * kNormRows, last = std::min(rows, first + kNormRows);
    for (std::int64_t row = first; row < last; ++row)
      table.rms_norm(x + row * width, nullptr, weight, eps, width, normed + (row - first) * width, true);
    table.prepare_rows(normed, width, first, last, out);
  });
}

std::int64_t prepared_row_bytes(PackFormat format, std::int64_t columns) {
  return format == PackFormat::kFp32 ? columns * 4 : prepared_bytes(16, columns) / 16;
}

namespace {

// Row n of a block of sixteen.
void unpack_row(const float* block, std::int64_t n, std::int64_t columns, float* row) {
  for (std::int64_t k = 0; k < columns; ++k) row[k] = block[k * 16 + n];
}

void unpack_row(const bf16* block, std::int64_t n, std::int64_t columns, float* row) {
  for (std::int64_t k = 0; k + 2 <= columns; k += 2) {
    const bf16* pair = block + k * 16 + n * 2;
    row[k] = widen(pair[0]), row[k + 1] = widen(pair[1]);
  }
  if (columns % 2 != 0) row[columns - 1] = widen(block[(columns - 1) * 16 + n * 2]);
}

}  // namespace

void gather_rows(PackFormat format, const void* packed, std::int64_t outputs, std::int64_t columns,
                 const std::int64_t* ids, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= outputs) throw std::invalid_argument("an id is not a row of the matrix");
  parallel_for(static_cast<std::size_t>(ceil_to(count, 16) / 16), [&](std::size_t task) {
    const std::int64_t first = static_cast<std::int64_t>(task) * 16, last = std::min(count, first + 16);
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t block = ids[i] / 16, n = ids[i] % 16;
      if (format == PackFormat::kFp32)
        unpack_row(static_cast<const float*>(packed) + block * 16 * columns, n, columns, out + i * columns);
      else
        unpack_row(static_cast<const bf16*>(packed) + block * 16 * ceil_to(columns, 32), n, columns,
                   out + i * columns);
    }
  });
}

}  // namespace tokenvm
