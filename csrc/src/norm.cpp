#include "tokenvm/norm.hpp"

#include <algorithm>
#include <cmath>

#include "tokenvm/kernels.hpp"
#include "tokenvm/team.hpp"

namespace tokenvm {
namespace {

// Calls function(row) for every row; a task holds enough rows to be worth handing out.
template <class Function>
void for_rows(std::int64_t rows, std::int64_t width, Function&& function) {
  const std::int64_t step = std::max<std::int64_t>(1, 8192 / std::max<std::int64_t>(width, 1));
  parallel_for(static_cast<std::size_t>(ceil_to(rows, step) / step), [&](std::size_t task) {
    const std::int64_t first = static_cast<std::int64_t>(task) * step, last = std::min(rows, first + step);
    for (std::int64_t row = first; row < last; ++row) function(row);
  });
}

void* at(void* out, std::int64_t element, bool narrow) {
  return static_cast<char*>(out) + element * (narrow ? 2 : 4);
}

}  // namespace

void rms_norm(float* x, const float* delta, const float* weight, float eps, std::int64_t rows,
              std::int64_t width, void* out, bool narrow) {
  const Kernels& table = kernels();
  for_rows(rows, width, [&](std::int64_t row) {
    const float* added = delta == nullptr ? nullptr : delta + row * width;
    table.rms_norm(x + row * width, added, weight, eps, width, at(out, row * width, narrow), narrow);
  });
}

void silu_mul(const float* gate_up, std::int64_t rows, std::int64_t width, void* out, bool narrow) {
  const Kernels& table = kernels();
  for_rows(rows, width, [&](std::int64_t row) {
    const float* gate = gate_up + row * 2 * width;
    table.silu_mul(gate, gate + width, width, at(out, row * width, narrow), narrow);
  });
}

void gelu_mul(const float* gate_up, std::int64_t rows, std::int64_t width, void* out, bool narrow) {
  const Kernels& table = kernels();
  for_rows(rows, width, [&](std::int64_t row) {
    const float* gate = gate_up + row * 2 * width;
    table.gelu_mul(gate, gate + width, width, at(out, row * width, narrow), narrow);
  });
}

void norm_heads(float* x, std::int64_t rows, std::int64_t heads, std::int64_t first, std::int64_t count,
                std::int64_t head_dim, const float* weight, float eps) {
  const Kernels& table = kernels();
  for_rows(rows, count * head_dim, [&](std::int64_t row) {
    float* head = x + (row * heads + first) * head_dim;
    for (std::int64_t h = 0; h < count; ++h, head += head_dim)
      table.rms_norm(head, nullptr, weight, eps, head_dim, head, false);
  });
}

void add_rows(float* x, const float* added, std::int64_t stride, std::int64_t rows, std::int64_t width) {
  for_rows(rows, width, [&](std::int64_t row) {
    for (std::int64_t i = 0; i < width; ++i) x[row * width + i] += added[row * stride + i];
  });
}

void cast_bf16(const float* x, std::int64_t count, std::uint16_t* out) {
  const Kernels& table = kernels();
  constexpr std::int64_t kStretch = 4096;
  for_rows(ceil_to(count, kStretch) / kStretch, kStretch, [&](std::int64_t row) {
    const std::int64_t first = row * kStretch;
    table.cast(x + first, std::min(kStretch, count - first), out + first);
  });
}

void reset_state(float* acc, float* peak, float* mass, std::int64_t rows, std::int64_t head_dim) {
  for_rows(rows, head_dim, [&](std::int64_t row) {
    std::fill(acc + row * head_dim, acc + (row + 1) * head_dim, 0.0f);
    peak[row] = -INFINITY;
    mass[row] = 0.0f;
  });
}

void finish_state(const float* acc, const float* peak, const float* mass, std::int64_t rows,
                  std::int64_t head_dim, void* out, bool narrow, float* lse) {
  const Kernels& table = kernels();
  for_rows(rows, head_dim, [&](std::int64_t row) {
    table.finish(acc + row * head_dim, mass[row], head_dim, at(out, row * head_dim, narrow), narrow);
    if (lse == nullptr) return;
    const bool empty = !(mass[row] > 0.0f);
    lse[row] = empty ? -INFINITY : static_cast<float>(peak[row] + std::log(static_cast<double>(mass[row])));
  });
}

}  // namespace tokenvm
