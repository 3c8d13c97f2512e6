// Page parts: one layer of `tokens` consecutive tokens of one sequence.
#pragma once

#include <cstdint>

namespace tokenvm {

// How the elements of a part are kept: as they are, or as codes of 8 bits with scales.
enum class KvFormat : std::int32_t { kRaw = 0, kInt8 = 1, kFp8 = 2 };

// Layout "kv-k32-1": per kv head K as [head_dim/w][tokens][w], then V as [tokens/w][head_dim][w]; w is 2 for
// bf16 and 1 for fp32. Pairs along the dimension that a product sums over: tile registers read a part in
// place.
struct PartShape {
  std::int64_t kv_heads, head_dim, tokens;
  bool narrow;  // bf16, else fp32
  // Coded: per kv head codes in the same order, a byte each, then fp32 scales of keys, then of values: one a
  // dimension and one a token (int8), or one and one (fp8); heads begin at multiples of 64 bytes.
  KvFormat format = KvFormat::kRaw;

  std::int64_t w() const { return narrow ? 2 : 1; }
  std::int64_t itemsize() const { return narrow ? 2 : 4; }
  std::int64_t head_elements() const { return 2 * tokens * head_dim; }
  std::int64_t head_bytes() const {
    if (format == KvFormat::kRaw) return head_elements() * itemsize();
    const std::int64_t scales = format == KvFormat::kInt8 ? head_dim + tokens : 2;
    return (head_elements() + 4 * scales + 63) / 64 * 64;
  }
  std::int64_t key(std::int64_t token, std::int64_t dim) const {
    return dim / w() * tokens * w() + token * w() + dim % w();
  }
  std::int64_t value(std::int64_t token, std::int64_t dim) const {
    return tokens * head_dim + token / w() * head_dim * w() + dim * w() + token % w();
  }
};

// Ropes q and k of every row (half-rotation, fp32), rounds to the part's dtype, writes k and v into token
// offsets[i] of the part at parts[i] and q into out [rows][q_heads][head_dim]. qkv: fp32 [rows][(q_heads + 2
// kv_heads) * head_dim]. cos_sin: [positions][head_dim]. Rows must name different tokens. Throws
// std::invalid_argument on a position or offset out of range.
void rope_append(const float* qkv, std::int64_t rows, std::int64_t q_heads, const PartShape& shape,
                 const float* cos_sin, std::int64_t positions, const std::int64_t* position,
                 const std::uint64_t* parts, const std::int32_t* offsets, void* out);

// A part as plain [kv_heads][tokens][head_dim] arrays of its dtype, and back.
void read_part(const void* part, const PartShape& shape, void* k, void* v);
void write_part(void* part, const PartShape& shape, const void* k, const void* v);

}  // namespace tokenvm
