#include "tokenvm/quantise.hpp"

#include <stdexcept>

#include "tokenvm/team.hpp"

namespace tokenvm {
namespace {

PartShape raw_shape(PartShape shape) {
  shape.format = KvFormat::kRaw;
  return shape;
}

CodeJob job_of(const PartShape& shape, std::int64_t head, char* raw, char* coded) {
  return {raw + head * raw_shape(shape).head_bytes(),
          coded + head * shape.head_bytes(),
          shape.head_dim,
          shape.tokens,
          shape.narrow,
          shape.format};
}

char* at(std::uint64_t address) { return reinterpret_cast<char*>(static_cast<std::uintptr_t>(address)); }

void check(const PartShape& shape) {
  if (shape.format == KvFormat::kRaw) throw std::invalid_argument("a raw part is not quantised");
}

}  // namespace

void quantise(const std::uint64_t* sources, const std::uint64_t* targets, std::int64_t count,
              const PartShape& shape) {
  check(shape);
  for (std::int64_t i = 0; i < count; ++i)
    if (sources[i] == 0 || targets[i] == 0) throw std::invalid_argument("a part address is 0");
  const Kernels& table = kernels();
  parallel_for(static_cast<std::size_t>(count * shape.kv_heads), [&](std::size_t task) {
    const auto part = static_cast<std::int64_t>(task) / shape.kv_heads;
    const auto head = static_cast<std::int64_t>(task) % shape.kv_heads;
    table.quantise(job_of(shape, head, at(sources[part]), at(targets[part])));
  });
}

void dequantise(const void* part, const PartShape& shape, void* raw) {
  check(shape);
  const Kernels& table = kernels();
  parallel_for(static_cast<std::size_t>(shape.kv_heads), [&](std::size_t head) {
    table.dequantise(job_of(shape, static_cast<std::int64_t>(head), static_cast<char*>(raw),
                            static_cast<char*>(const_cast<void*>(part))));
  });
}

}  // namespace tokenvm
