#include "tokenvm/paging.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "tokenvm/kernels.hpp"
#include "tokenvm/scratch.hpp"
#include "tokenvm/team.hpp"

namespace tokenvm {
namespace {

constexpr std::int64_t kRun = 16;  // rows that are turned into the order of a part together

// Keys of `count` consecutive tokens, [count][head_dim], to the place of the first one: what a dimension or a
// pair of them takes is four bytes in either dtype, and lies side by side for the tokens.
void place_keys(const void* rows, std::int64_t count, const PartShape& shape, void* keys, std::int64_t token) {
  const std::int64_t units = shape.head_dim / shape.w();
  const char* source = static_cast<const char*>(rows);
  char* target = static_cast<char*>(keys) + token * 4;
  for (std::int64_t u = 0; u < units; ++u)
    for (std::int64_t r = 0; r < count; ++r)
      std::memcpy(target + (u * shape.tokens + r) * 4, source + (r * units + u) * 4, 4);
}

void place_values(const float* rows, std::int64_t count, const PartShape& shape, float* values,
                  std::int64_t token) {
  std::memcpy(values + token * shape.head_dim, rows, static_cast<std::size_t>(count * shape.head_dim) * 4);
}

// Two tokens share a row of pairs. Where only one of them is there, the other's half stays untouched.
void place_values(const bf16* rows, std::int64_t count, const PartShape& shape, bf16* values,
                  std::int64_t token) {
  const std::int64_t D = shape.head_dim;
  for (std::int64_t r = 0; r < count;) {
    const std::int64_t t = token + r;
    bf16* pairs = values + t / 2 * 2 * D;
    const bf16* row = rows + r * D;
    const bool both = t % 2 == 0 && r + 1 < count;
    if (both)
      for (std::int64_t d = 0; d < D; ++d) pairs[2 * d] = row[d], pairs[2 * d + 1] = row[D + d];
    else
      for (std::int64_t d = 0; d < D; ++d) pairs[2 * d + t % 2] = row[d];
    r += both ? 2 : 1;
  }
}

template <class T>
struct Append {
  const Kernels& table;
  const float* qkv;
  std::int64_t q_heads;
  const PartShape& shape;
  const float* cos_sin;
  const std::int64_t* position;
  const std::uint64_t* parts;
  const std::int32_t* offsets;
  T* out;

  const float* head(std::int64_t row, std::int64_t h) const {
    return qkv + (row * (q_heads + 2 * shape.kv_heads) + h) * shape.head_dim;
  }

  void rope(std::int64_t row, std::int64_t h, T* target) const {
    const std::int64_t D = shape.head_dim;
    table.rope(head(row, h), cos_sin + position[row] * D, D, target, shape.narrow);
  }

  void copy_value(std::int64_t row, std::int64_t h, T* target) const {
    if constexpr (sizeof(T) == 2)
      table.cast(head(row, h), shape.head_dim, target);
    else
      std::memcpy(target, head(row, h), static_cast<std::size_t>(shape.head_dim) * 4);
  }

  // Rows [first, last) go to consecutive tokens of one part. `space` holds kRun heads.
  void run(std::int64_t first, std::int64_t last, T* space) const {
    const std::int64_t D = shape.head_dim, token = offsets[first];
    for (std::int64_t i = first; i < last; ++i)
      for (std::int64_t h = 0; h < q_heads; ++h) rope(i, h, out + (i * q_heads + h) * D);
    T* part = reinterpret_cast<T*>(static_cast<std::uintptr_t>(parts[first]));
    for (std::int64_t h = 0; h < shape.kv_heads; ++h, part += shape.head_elements()) {
      for (std::int64_t i = first; i < last; ++i) rope(i, q_heads + h, space + (i - first) * D);
      place_keys(space, last - first, shape, part, token);
      for (std::int64_t i = first; i < last; ++i)
        copy_value(i, q_heads + shape.kv_heads + h, space + (i - first) * D);
      place_values(space, last - first, shape, part + shape.tokens * D, token);
    }
  }

  // One past the last row, from `first` on, that goes to consecutive tokens of its part.
  std::int64_t end_of_run(std::int64_t first, std::int64_t last) const {
    std::int64_t end = first + 1;
    while (end < last && parts[end] == parts[first] && offsets[end] == offsets[first] + (end - first)) ++end;
    return end;
  }

  // Asks for the lines that a run will write: each token of a sequence of its own touches a line for every pair of
  // dimensions, and all of them are far away.
  void bring_near(std::int64_t first, std::int64_t last) const {
    const std::int64_t D = shape.head_dim, token = offsets[first], units = D / shape.w();
    const char* head = reinterpret_cast<const char*>(static_cast<std::uintptr_t>(parts[first]));
    const std::int64_t values = token / shape.w() * shape.w() * D, count = last - first;
    for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
      const char* keys = head + h * shape.head_elements() * static_cast<std::int64_t>(sizeof(T));
      for (std::int64_t u = 0; u < units; ++u) __builtin_prefetch(keys + (u * shape.tokens + token) * 4, 1);
      const char* begin = keys + (shape.tokens * D + values) * static_cast<std::int64_t>(sizeof(T));
      for (std::int64_t at = 0; at < ceil_to(count, shape.w()) * D * static_cast<std::int64_t>(sizeof(T)); at += 64)
        __builtin_prefetch(begin + at, 1);
    }
  }

  void rows(std::int64_t first, std::int64_t last, T* space) const {
    for (std::int64_t i = first; i < last; i = end_of_run(i, last)) bring_near(i, end_of_run(i, last));
    for (std::int64_t end; first < last; first = end) {
      end = end_of_run(first, last);
      run(first, end, space);
    }
  }
};

template <class T>
void append_rows(std::int64_t rows, const Append<T>& append) {
  parallel_for(static_cast<std::size_t>(ceil_to(rows, kRun) / kRun), [&](std::size_t task) {
    thread_local Scratch scratch;
    T* space = scratch.reserve<T>(static_cast<std::size_t>(kRun * append.shape.head_dim));
    const std::int64_t first = static_cast<std::int64_t>(task) * kRun;
    append.rows(first, std::min(rows, first + kRun), space);
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
  const Kernels& table = kernels();
  if (shape.narrow)
    append_rows<bf16>(rows, {table, qkv, q_heads, shape, cos_sin, position, parts, offsets, static_cast<bf16*>(out)});
  else
    append_rows<float>(rows, {table, qkv, q_heads, shape, cos_sin, position, parts, offsets, static_cast<float*>(out)});
}

void read_part(const void* part, const PartShape& shape, void* k, void* v) {
  shape.narrow ? read_as<bf16>(part, shape, k, v) : read_as<float>(part, shape, k, v);
}

void write_part(void* part, const PartShape& shape, const void* k, const void* v) {
  shape.narrow ? write_as<bf16>(part, shape, k, v) : write_as<float>(part, shape, k, v);
}

}  // namespace tokenvm
