// Lossy KV formats: raw parts to quantised ones and back.
#pragma once

#include <cstdint>

#include "tokenvm/kernels.hpp"
#include "tokenvm/paging.hpp"
#include "tokenvm/scratch.hpp"

namespace tokenvm {

// Quantises the raw parts at sources[i] (layout "kv-k32-1") into the parts of `shape` at targets[i].
void quantise(const std::uint64_t* sources, const std::uint64_t* targets, std::int64_t count,
              const PartShape& shape);

// The raw part that a quantised one stands for.
void dequantise(const void* part, const PartShape& shape, void* raw);

// One kv head of a part as the page kernels read it.
struct HeadView {
  const void* keys;
  const void* values;
};

// In place, or dequantised into `scratch`, where it stays until the next call.
inline HeadView view_head(const PartShape& shape, const Kernels& table, const char* head, Scratch& scratch) {
  const auto elements = static_cast<std::size_t>(shape.head_elements());
  const auto half = elements / 2 * static_cast<std::size_t>(shape.itemsize());
  if (shape.format == KvFormat::kRaw) return {head, head + half};
  char* raw = scratch.reserve<char>(2 * half);
  table.dequantise({raw, const_cast<char*>(head), shape.head_dim, shape.tokens, shape.narrow, shape.format});
  return {raw, raw + half};
}

}  // namespace tokenvm
