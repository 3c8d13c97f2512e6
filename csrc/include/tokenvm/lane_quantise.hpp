// One head of a part to codes and back: docs/kv-formats.md says which bits. Include after code_lanes.hpp.
#pragma once

#include "tokenvm/kernels.hpp"

namespace tokenvm {
namespace {

// `rows` rows of `width` elements; element i of a row has the scale [row][i % w]. w is 1 or 2.
struct CodedRows {
  std::int64_t rows, width, w;
  std::uint8_t* codes;
  float* scales;
};

inline CodedRows coded_keys(const CodeJob& job) {
  const std::int64_t w = job.narrow ? 2 : 1, T = job.tokens, D = job.head_dim;
  auto* codes = static_cast<std::uint8_t*>(job.coded);
  auto* scales = reinterpret_cast<float*>(codes + 2 * T * D);
  if (job.format == KvFormat::kFp8) return {1, T * D, 1, codes, scales};
  return {D / w, T * w, w, codes, scales};
}

inline CodedRows coded_values(const CodeJob& job) {
  const std::int64_t w = job.narrow ? 2 : 1, T = job.tokens, D = job.head_dim;
  auto* codes = static_cast<std::uint8_t*>(job.coded);
  auto* scales = reinterpret_cast<float*>(codes + 2 * T * D);
  if (job.format == KvFormat::kFp8) return {1, T * D, 1, codes + T * D, scales + 1};
  return {T / w, D * w, w, codes + T * D, scales + D};
}

inline Lanes load_elements(const float* p, std::int64_t count) { return load_some(p, count); }
inline Lanes load_elements(const bf16* p, std::int64_t count) {
  if (count >= 16) return load_bf16(p);
  bf16 some[16] = {};
  for (std::int64_t i = 0; i < count; ++i) some[i] = p[i];
  return load_bf16(some);
}

// What turns the elements of a row into codes, lane by lane, and what the codes are multiplied by.
struct Scale {
  float scale[2], inverse[2];
};

// scale = largest magnitude / largest code, 0 where that is no normal number; NaN if an element is not finite.
template <class Code, class T>
inline Scale scale_of(const T* row, std::int64_t width, std::int64_t w) {
  Lanes high = zero_lanes(), zeros = zero_lanes();
  for (std::int64_t i = 0; i < width; i += 16) {
    const Lanes x = load_elements(row + i, width - i);
    high = max(max(x, sub(zero_lanes(), x)), high);
    zeros = fma(x, zero_lanes(), zeros);
  }
  float lane_high[16], lane_zero[16];
  store(lane_high, high);
  store(lane_zero, zeros);
  Scale out{};
  for (std::int64_t side = 0; side < w; ++side) {
    float peak = 0.0f;
    bool finite = true;
    for (std::int64_t lane = side; lane < 16; lane += w) {
      peak = lane_high[lane] > peak ? lane_high[lane] : peak;
      finite = finite && lane_zero[lane] == 0.0f;
    }
    const float scale = peak / Code::kLargest;
    out.scale[side] = !finite ? float_of(0x7fc00000) : scale >= 0x1p-126f ? scale : 0.0f;
    out.inverse[side] = out.scale[side] > 0.0f ? 1.0f / scale : 0.0f;
  }
  return out;
}

template <class Code, class T>
inline void quantise_rows(const T* raw, const CodedRows& to) {
  const Lanes largest = broadcast(Code::kLargest), smallest = broadcast(-Code::kLargest);
  for (std::int64_t r = 0; r < to.rows; ++r, raw += to.width) {
    const Scale scale = scale_of<Code>(raw, to.width, to.w);
    std::memcpy(to.scales + r * to.w, scale.scale, static_cast<std::size_t>(to.w) * 4);
    const Lanes inverse = alternate(scale.inverse[0], scale.inverse[to.w - 1]);
    const auto encode = [&](std::int64_t i, std::uint8_t* codes) {
      const Lanes scaled = mul(load_elements(raw + i, to.width - i), inverse);
      Code::encode(min(max(scaled, smallest), largest), codes);
    };
    std::uint8_t* codes = to.codes + r * to.width;
    std::int64_t i = 0;
    for (; i + 16 <= to.width; i += 16) encode(i, codes + i);
    if (i == to.width) continue;
    std::uint8_t some[16];
    encode(i, some);
    std::memcpy(codes + i, some, static_cast<std::size_t>(to.width - i));
  }
}

// The last elements of a row, fewer than 32.
template <class Code, class T>
inline void dequantise_tail(const std::uint8_t* codes, Lanes scale, std::int64_t count, T* raw) {
  std::uint8_t some[32] = {};
  T out[32];
  std::memcpy(some, codes, static_cast<std::size_t>(count));
  store_two(out, mul(Code::decode(some), scale), mul(Code::decode(some + 16), scale));
  std::memcpy(raw, out, static_cast<std::size_t>(count) * sizeof(T));
}

template <class Code, class T>
inline void dequantise_rows(const CodedRows& from, T* raw) {
  const std::uint8_t* codes = from.codes;
  for (std::int64_t r = 0; r < from.rows; ++r, raw += from.width, codes += from.width) {
    const float* scales = from.scales + r * from.w;
    const Lanes scale = alternate(scales[0], scales[from.w - 1]);
    std::int64_t i = 0;
    for (; i + 32 <= from.width; i += 32)
      store_two(raw + i, mul(Code::decode(codes + i), scale), mul(Code::decode(codes + i + 16), scale));
    if (i < from.width) dequantise_tail<Code>(codes + i, scale, from.width - i, raw + i);
  }
}

template <class Code, class T>
inline void quantise_as(const CodeJob& job) {
  const T* raw = static_cast<const T*>(job.raw);
  quantise_rows<Code>(raw, coded_keys(job));
  quantise_rows<Code>(raw + job.tokens * job.head_dim, coded_values(job));
}

template <class Code, class T>
inline void dequantise_as(const CodeJob& job) {
  T* raw = static_cast<T*>(job.raw);
  dequantise_rows<Code>(coded_keys(job), raw);
  dequantise_rows<Code>(coded_values(job), raw + job.tokens * job.head_dim);
}

inline void quantise_head(const CodeJob& job) {
  if (job.format == KvFormat::kInt8)
    job.narrow ? quantise_as<Int8Code, bf16>(job) : quantise_as<Int8Code, float>(job);
  else
    job.narrow ? quantise_as<Fp8Code, bf16>(job) : quantise_as<Fp8Code, float>(job);
}

inline void dequantise_head(const CodeJob& job) {
  if (job.format == KvFormat::kInt8)
    job.narrow ? dequantise_as<Int8Code, bf16>(job) : dequantise_as<Int8Code, float>(job);
  else
    job.narrow ? dequantise_as<Fp8Code, bf16>(job) : dequantise_as<Fp8Code, float>(job);
}

}  // namespace
}  // namespace tokenvm
