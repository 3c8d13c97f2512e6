// Kernels that work on one row of activations. Include after lane_math.hpp.
#pragma once

#include "tokenvm/kernels.hpp"

namespace tokenvm {
namespace {

// The squares are summed in 16 lanes, then the lanes by halves: 16-lane sum.
inline void rms_norm(float* x, const float* delta, const float* weight, float eps, std::int64_t width,
                     void* out, bool narrow) {
  Lanes squares = zero_lanes();
  for (std::int64_t i = 0; i < width; i += 16) {
    Lanes value = load_some(x + i, width - i);
    if (delta != nullptr) {
      value = add(value, load_some(delta + i, width - i));
      store_some(x + i, value, width - i);
    }
    squares = fma(value, value, squares);
  }
  const float mean = sum_lanes(squares) / static_cast<float>(width);
  const Lanes inverse = broadcast(1.0f / __builtin_sqrtf(mean + eps));
  for (std::int64_t i = 0; i < width; i += 16) {
    const Lanes normal = mul(load_some(x + i, width - i), inverse);
    store_as(out, i, mul(normal, load_some(weight + i, width - i)), width - i, narrow);
  }
}

// g / (1 + exp(-g)) * u
inline Lanes silu_times(Lanes g, Lanes u) {
  return mul(div(g, add(broadcast(1.0f), exp_lanes(sub(zero_lanes(), g)))), u);
}

inline void silu_mul(const float* gate, const float* up, std::int64_t count, void* out, bool narrow) {
  for (std::int64_t i = 0; i < count; i += 16) {
    const Lanes value = silu_times(load_some(gate + i, count - i), load_some(up + i, count - i));
    store_as(out, i, value, count - i, narrow);
  }
}

// g / (1 + exp(-2z)) * u with z = sqrt(2/pi) (g + 0.044715 g^3), which is 0.5 g (1 + tanh z) * u
inline Lanes gelu_times(Lanes g, Lanes u) {
  const Lanes inner = fma(mul(mul(g, g), g), broadcast(0.044715f), g);
  const Lanes exponent = mul(inner, broadcast(-1.5957691216057308f));
  return mul(div(g, add(broadcast(1.0f), exp_lanes(exponent))), u);
}

inline void gelu_mul(const float* gate, const float* up, std::int64_t count, void* out, bool narrow) {
  for (std::int64_t i = 0; i < count; i += 16) {
    const Lanes value = gelu_times(load_some(gate + i, count - i), load_some(up + i, count - i));
    store_as(out, i, value, count - i, narrow);
  }
}

inline void cast_row(const float* x, std::int64_t count, bf16* out) {
  for (std::int64_t i = 0; i < count; i += 16) store_as(out, i, load_some(x + i, count - i), count - i, true);
}

inline void rope(const float* x, const float* cos_sin, std::int64_t head_dim, void* out, bool narrow) {
  const std::int64_t half = head_dim / 2;
  for (std::int64_t d = 0; d < half; d += 16) {
    const std::int64_t count = half - d;
    const Lanes c = load_some(cos_sin + d, count), s = load_some(cos_sin + half + d, count);
    const Lanes low = load_some(x + d, count), high = load_some(x + half + d, count);
    store_as(out, d, sub(mul(low, c), mul(high, s)), count, narrow);
    store_as(out, half + d, add(mul(high, c), mul(low, s)), count, narrow);
  }
}

}  // namespace
}  // namespace tokenvm
