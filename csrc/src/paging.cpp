#include "tokenvm/paging.hpp"

#include <algorithm>
#include <stdexcept>

#include "tokenvm/kernels.hpp"
#include "tokenvm/scratch.hpp"
#include "tokenvm/team.hpp"

namespace tokenvm {
namespace {

// narrow() and the identity, by the dtype of the part.
template <class T>
T stored(float value) {
  if constexpr (sizeof(T) == 2)
    return narrow(value);
  else
    return value;
}

template <class T>
struct Append {
  const float* qkv;
  std::int64_t q_heads;
  const PartShape& shape;
  const float* cos_sin;
  const std::int64_t* position;
  const std::uint64_t* parts;
  const std::int32_t* offsets;
  T* out;

  void row(const Kernels& table, std::int64_t i, float* roped) const {
    const std::int64_t D = shape.head_dim, heads = q_heads + 2 * shape.kv_heads;
    const float* x = qkv + i * heads * D;
    const float* angles = cos_sin + position[i] * D;
    for (std::int64_t h = 0; h < q_heads; ++h) {
      table.rope(x + h * D, angles, D, roped);
      T* q = out + (i * q_heads + h) * D;
      for (std::int64_t d = 0; d < D; ++d) q[d] = stored<T>(roped[d]);
    }
    T* part = reinterpret_cast<T*>(static_cast<std::uintptr_t>(parts[i]));
    const std::int64_t token = offsets[i];
    for (std::int64_t h = 0; h < shape.kv_heads; ++h, part += shape.head_elements()) {
      table.rope(x + (q_heads + h) * D, angles, D, roped);
      const float* v = x + (q_heads + shape.kv_heads + h) * D;
      for (std::int64_t d = 0; d < D; ++d) part[shape.key(token, d)] = stored<T>(roped[d]);
      for (std::int64_t d = 0; d < D; ++d) part[shape.value(token, d)] = stored<T>(v[d]);
    }
  }
};

template <class T>
void append_rows(std::int64_t rows, const Append<T>& append) {
  const Kernels& table = kernels();
  parallel_for(static_cast<std::size_t>(ceil_to(rows, 16) / 16), [&](std::size_t task) {
    thread_local Scratch scratch;
    float* roped = scratch.reserve<float>(static_cast<std::size_t>(append.shape.head_dim));
    const std::int64_t first = static_cast<std::int64_t>(task) * 16, last = std::min(rows, first + 16);
    for (std::int64_t i = first; i < last; ++i) append.row(table, i, roped);
  });
}

template <class T, class Visit>
void visit_part(T* part, const PartShape& shape, Visit&& visit) {
  std::int64_t plain = 0;
  for (std::int64_t h = 0; h < shape.kv_heads; ++h, part += shape.head_elements())
    for (std::int64_t t = 0; t < shape.tokens; ++t)
      for (std::int64_t d = 0; d < shape.head_dim; ++d, ++plain)
        visit(part[shape.key(t, d)], part[shape.value(t, d)], plain);
}

template <class T>
void read_as(const void* part, const PartShape& shape, void* k, void* v) {
  visit_part(static_cast<const T*>(part), shape, [&](const T& key, const T& value, std::int64_t plain) {
    static_cast<T*>(k)[plain] = key, static_cast<T*>(v)[plain] = value;
  });
}

template <class T>
void write_as(void* part, const PartShape& shape, const void* k, const void* v) {
  visit_part(static_cast<T*>(part), shape, [&](T& key, T& value, std::int64_t plain) {
    key = static_cast<const T*>(k)[plain], value = static_cast<const T*>(v)[plain];
  });
}

}  // namespace

void rope_append(const float* qkv, std::int64_t rows, std::int64_t q_heads, const PartShape& shape,
                 const float* cos_sin, std::int64_t positions, const std::int64_t* position,
                 const std::uint64_t* parts, const std::int32_t* offsets, void* out) {
  for (std::int64_t i = 0; i < rows; ++i) {
    if (position[i] < 0 || position[i] >= positions)
      throw std::invalid_argument("a position has no row in cos_sin");
    if (offsets[i] < 0 || offsets[i] >= shape.tokens)
      throw std::invalid_argument("an offset is outside its page");
    if (parts[i] == 0) throw std::invalid_argument("a part address is 0");
  }
  if (shape.narrow)
    append_rows<bf16>(rows,
                      {qkv, q_heads, shape, cos_sin, position, parts, offsets, static_cast<bf16*>(out)});
  else
    append_rows<float>(rows,
                       {qkv, q_heads, shape, cos_sin, position, parts, offsets, static_cast<float*>(out)});
}

void read_part(const void* part, const PartShape& shape, void* k, void* v) {
  shape.narrow ? read_as<bf16>(part, shape, k, v) : read_as<float>(part, shape, k, v);
}

void write_part(void* part, const PartShape& shape, const void* k, const void* v) {
  shape.narrow ? write_as<bf16>(part, shape, k, v) : write_as<float>(part, shape, k, v);
}

}  // namespace tokenvm
