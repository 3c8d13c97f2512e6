// Sixteen float lanes in plain C++. The three lanes_*.hpp define the same names; a kernel source includes
// exactly one.
#pragma once

#include "tokenvm/numerics.hpp"

namespace tokenvm {
namespace {

constexpr int kRowBlock = 4;     // rows that share one read of the weights
constexpr int kColumnBlock = 1;  // blocks of 16 outputs side by side

struct Lanes {
  float f[16];
};

template <class Function>
inline Lanes each(Function function) {
  Lanes out;
  for (int i = 0; i < 16; ++i) out.f[i] = function(i);
  return out;
}

// Call it when lanes were used and other code goes on.
inline void clear_lanes() {}
inline Lanes load(const float* p) {
  return each([&](int i) { return p[i]; });
}
inline void store(float* p, const Lanes& a) { std::memcpy(p, a.f, sizeof a.f); }
inline Lanes broadcast(float value) {
  return each([&](int) { return value; });
}
inline Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
  return each([&](int i) { return __builtin_fmaf(a.f[i], b.f[i], c.f[i]); });
}
inline Lanes add(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.f[i] + b.f[i]; });
}
inline Lanes sub(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.f[i] - b.f[i]; });
}
inline Lanes mul(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.f[i] * b.f[i]; });
}
inline Lanes div(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.f[i] / b.f[i]; });
}
// Like the x86 instruction: the second operand if either is a NaN.
inline Lanes max(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.f[i] > b.f[i] ? a.f[i] : b.f[i]; });
}
inline Lanes min(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.f[i] < b.f[i] ? a.f[i] : b.f[i]; });
}
// The even and the odd elements of 16 pairs.
inline void load_pairs(const bf16* p, Lanes& even, Lanes& odd) {
  even = each([&](int i) { return widen(p[2 * i]); });
  odd = each([&](int i) { return widen(p[2 * i + 1]); });
}
inline Lanes load_bf16(const bf16* p) {
  return each([&](int i) { return widen(p[i]); });
}
inline Lanes round_bf16(const Lanes& a) {
  return each([&](int i) { return widen(narrow(a.f[i])); });
}
inline void store_bf16(bf16* p, const Lanes& a) {
  for (int i = 0; i < 16; ++i) p[i] = narrow(a.f[i]);
}
// value * 2^n, where n is the low part of shifted = n + 1.5 * 2^23; the result must be a normal number.
inline Lanes scale_exponent(const Lanes& value, const Lanes& shifted) {
  return each([&](int i) { return float_of(bits_of(value.f[i]) + (bits_of(shifted.f[i]) << 23)); });
}
// x - floor(x) rounded down, as VREDUCEPS does it. The nearest float, one less if that is above: its error is
// itself a float (Dekker's fast two-sum).
inline Lanes fraction(const Lanes& x) {
  return each([&](int i) {
    const float n = __builtin_floorf(x.f[i]), nearest = x.f[i] - n;
    const float error = x.f[i] - (nearest + n);
    return float_of(bits_of(nearest) - (error < 0.0f ? 1u : 0u));
  });
}
// value * 2^floor(x) for a value in [1, 2] and x < 100; +0 where that is no normal number. Two factors, since
// 2^floor(x) itself may be too small.
inline Lanes scale_by_floor(const Lanes& value, const Lanes& x) {
  return each([&](int i) {
    const float n = __builtin_floorf(x.f[i] > -200.0f ? x.f[i] : -200.0f);
    const std::uint32_t exponent = static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 227) << 23;
    return value.f[i] * float_of(exponent) * 0x1p-100f;
  });
}
// value where x > limit, +0 elsewhere.
inline Lanes keep_above(const Lanes& value, const Lanes& x, float limit) {
  return each([&](int i) { return x.f[i] > limit ? value.f[i] : 0.0f; });
}
// a in the lanes [begin, end), `other` elsewhere.
inline Lanes keep_lanes(const Lanes& a, std::int64_t begin, std::int64_t end, float other) {
  return each([&](int i) { return i >= begin && i < end ? a.f[i] : other; });
}
inline float sum_lanes(Lanes a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.f[i] = a.f[i] + a.f[i + half];
  return a.f[0];
}
inline float max_lanes(Lanes a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.f[i] = a.f[i] > a.f[i + half] ? a.f[i] : a.f[i + half];
  return a.f[0];
}

}  // namespace
}  // namespace tokenvm
