// Number formats and the floating-point mode that every kernel shares. Internal linkage throughout: each
// instruction set compiles its own copy, and the linker must never exchange one for another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace tokenvm {

using bf16 = std::uint16_t;

namespace {

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(bf16 value) { return float_of(static_cast<std::uint32_t>(value) << 16); }

// Round to nearest even; a NaN stays a NaN.
inline bf16 narrow(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16>((bits >> 16) | 0x40u);
  return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline std::int64_t ceil_to(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}
inline std::int64_t floor_to(std::int64_t value, std::int64_t step) { return value / step * step; }

// Flush-to-zero and denormals-are-zero on the current thread until the end of the scope: the tile unit
// computes so always, and every other path must agree with it.
class FlushScope {
 public:
#if defined(__x86_64__)
  FlushScope() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~FlushScope() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushScope() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (std::uint64_t{1} << 24)));
  }
  ~FlushScope() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  std::uint64_t saved_;
#else
  FlushScope() {}
#endif
 public:
  FlushScope(const FlushScope&) = delete;
  FlushScope& operator=(const FlushScope&) = delete;
};

}  // namespace
}  // namespace tokenvm
