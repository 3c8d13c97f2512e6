// Sixteen codes of a lossy KV format to and from float lanes. Include after lane_math.hpp.
#pragma once

namespace tokenvm {
namespace {

// Whole numbers from -127 to 127.
struct Int8Code {
  static constexpr float kLargest = 127.0f;

  // Values within +-kLargest, rounded to nearest even.
  static void encode(const float* values, std::uint8_t* codes) {
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<std::uint8_t>(bits_of(values[i] + 0x1.8p23f));
  }

  static Lanes decode(const std::uint8_t* codes) {
#if defined(__AVX512F__)
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw))};
#else
    float values[16];
    for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(static_cast<std::int8_t>(codes[i]));
    return load(values);
#endif
  }
};

// e4m3: sign, 4 bits of exponent (bias 7), 3 bits of mantissa; 448 is the largest, steps below 2^-6 are 2^-9.
struct Fp8Code {
  static constexpr float kLargest = 448.0f;
  static constexpr std::uint32_t kSmallestNormal = 0x3c800000;  // 2^-6

  static std::uint8_t code_of(float value) {
    const std::uint32_t bits = bits_of(value), size = bits & 0x7fffffffu;
    const std::uint32_t normal = ((size + 0x7ffffu + ((size >> 20) & 1u)) >> 20) - (120u << 3);
    const std::uint32_t small = bits_of(float_of(size) * 0x1p9f + 0x1.8p23f) & 0xffu;
    return static_cast<std::uint8_t>((bits >> 24 & 0x80u) | (size >= kSmallestNormal ? normal : small));
  }

  // Values within +-kLargest, rounded to nearest even.
  static void encode(const float* values, std::uint8_t* codes) {
    for (int i = 0; i < 16; ++i) codes[i] = code_of(values[i]);
  }

  static float value_of(std::uint8_t code) {
    const std::uint32_t size = code & 0x7fu;
    const float value =
        size >= 8 ? float_of((size << 20) + (120u << 23)) : static_cast<float>(size) * 0x1p-9f;
    return float_of(bits_of(value) | (code & 0x80u) << 24);
  }

  static Lanes decode(const std::uint8_t* codes) {
#if defined(__AVX512F__)
    // The same bits as fp16 stand for a 256th: its exponent has one bit more and a bias of 15.
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(raw), 7);
    const __m256i half = _mm256_and_si256(wide, _mm256_set1_epi16(static_cast<short>(0xbf80)));
    return {_mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f))};
#else
    float values[16];
    for (int i = 0; i < 16; ++i) values[i] = value_of(codes[i]);
    return load(values);
#endif
  }
};

inline void store_two(float* p, Lanes a, Lanes b) {
  store(p, a);
  store(p + 16, b);
}

inline void store_two(bf16* p, Lanes a, Lanes b) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
#else
  store_bf16(p, a);
  store_bf16(p + 16, b);
#endif
}

}  // namespace
}  // namespace tokenvm
