// Functions over sixteen lanes, written once for every instruction set. Include after one lanes_*.hpp.
#pragma once

namespace tokenvm {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

constexpr float kExpFloor = -87.3f;

// x = n ln2 + r with |r| <= ln2/2; shifted holds n in its low bits.
struct Reduced {
  Lanes shifted, r;
};

inline Reduced reduce_exponent(Lanes x) {
  const Lanes magic = broadcast(0x1.8p23f);
  const Lanes shifted = fma(x, broadcast(0x1.715476p0f), magic);
  const Lanes n = sub(shifted, magic);
  const Lanes r = fma(n, broadcast(-0x1.62e4p-1f), x);
  return {shifted, fma(n, broadcast(-0x1.7f7d1cp-20f), r)};
}

// y = exp(r) for N vectors: a minimax polynomial of degree 5 through exp(0) = 1, so that the peak of a
// softmax weighs exactly 1.
template <int N>
inline void exp_reduced(const Lanes (&r)[N], Lanes (&y)[N]) {
  constexpr std::uint32_t kCoefficients[] = {0x3d2b9da5, 0x3e2aad38, 0x3efffee1, 0x3f7ffffb, 0x3f800000};
  for (Lanes& lanes : y) lanes = broadcast(float_of(0x3c07d3be));
  for (const std::uint32_t coefficient : kCoefficients)
    for (int i = 0; i < N; ++i) y[i] = fma(y[i], r[i], broadcast(float_of(coefficient)));
}

// exp(x), relative error below 2e-7. x <= -87.3 gives +0, x >= 88 gives exp(88).
inline Lanes exp_lanes(Lanes x) {
  x = min(x, broadcast(88.0f));
  const Reduced part = reduce_exponent(x);
  const Lanes r[1] = {part.r};
  Lanes y[1];
  exp_reduced(r, y);
  return keep_above(scale_exponent(y[0], part.shifted), x, kExpFloor);
}

constexpr float kLog2E = 0x1.715476p0f;

// 2^x for x that is not much above 0, relative error below 1.1e-4; less than 2^-126 gives +0. The weights of a
// bf16 softmax, which are rounded to 9 bits anyway. A minimax cubic through 2^0 = 1 and 2^1 = 2.
inline Lanes exp2_lanes(Lanes x) {
  const Lanes f = fraction(x);
  Lanes y = fma(broadcast(float_of(0x3da04af5)), f, broadcast(float_of(0x3e67bd33)));
  y = fma(y, f, broadcast(float_of(0x3f320754)));
  return scale_by_floor(fma(y, f, broadcast(1.0f)), x);
}

inline float exp_one(float x) {
  float lanes[16];
  store(lanes, exp_lanes(broadcast(x)));
  return lanes[0];
}

inline Lanes zero_lanes() { return broadcast(0.0f); }

// The first `count` floats, then zeros.
inline Lanes load_some(const float* p, std::int64_t count) {
  if (count >= 16) return load(p);
  float f[16] = {};
  for (std::int64_t i = 0; i < count; ++i) f[i] = p[i];
  return load(f);
}

inline void store_some(float* p, Lanes a, std::int64_t count) {
  if (count >= 16) return store(p, a);
  float f[16];
  store(f, a);
  for (std::int64_t i = 0; i < count; ++i) p[i] = f[i];
}

// Stores fp32, or bf16 if `narrow`, at element `offset` of out.
inline void store_as(void* out, std::int64_t offset, Lanes a, std::int64_t count, bool narrow) {
  if (!narrow) return store_some(static_cast<float*>(out) + offset, a, count);
  bf16* target = static_cast<bf16*>(out) + offset;
  if (count >= 16) return store_bf16(target, a);
  bf16 some[16];
  store_bf16(some, a);
  for (std::int64_t i = 0; i < count; ++i) target[i] = some[i];
}

}  // namespace
}  // namespace tokenvm
