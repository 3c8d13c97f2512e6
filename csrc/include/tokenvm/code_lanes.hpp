// Sixteen codes of a lossy KV format to and from float lanes. Include after lane_math.hpp.
#pragma once

namespace tokenvm {
namespace {

// Whole numbers from -127 to 127.
struct Int8Code {
  static constexpr float kLargest = 127.0f;

  // Values within +-kLargest, rounded to nearest even.
  static void encode(Lanes values, std::uint8_t* codes) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(values.v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), bytes);
#else
    float f[16];
    store(f, values);
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<std::uint8_t>(bits_of(f[i] + 0x1.8p23f));
#endif
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
  static void encode(Lanes values, std::uint8_t* codes) {
#if defined(__AVX512F__)
    const auto number = [](std::uint32_t n) { return _mm512_set1_epi32(static_cast<int>(n)); };
    const __m512i bits = _mm512_castps_si512(values.v), size = _mm512_and_si512(bits, number(0x7fffffffu));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(size, 20), number(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(size, number(0x7ffffu)), odd);
    const __m512i normal = _mm512_sub_epi32(_mm512_srli_epi32(rounded, 20), number(120u << 3));
    const __m512 steps = _mm512_mul_ps(_mm512_castsi512_ps(size), _mm512_set1_ps(0x1p9f));
    const __m512i small = _mm512_castps_si512(_mm512_add_ps(steps, _mm512_set1_ps(0x1.8p23f)));
    const __mmask16 is_normal = _mm512_cmp_epi32_mask(size, number(kSmallestNormal), _MM_CMPINT_NLT);
    const __m512i code = _mm512_mask_mov_epi32(small, is_normal, normal);
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), number(0x80u));
    const __m512i byte = _mm512_or_si512(_mm512_and_si512(code, number(0x7fu)), sign);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(byte));
#else
    float f[16];
    store(f, values);
    for (int i = 0; i < 16; ++i) codes[i] = code_of(f[i]);
#endif
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

// `even` and `odd` in turn.
inline Lanes alternate(float even, float odd) {
#if defined(__AVX512F__)
  const std::uint64_t both = bits_of(even) | static_cast<std::uint64_t>(bits_of(odd)) << 32;
  return {_mm512_castsi512_ps(_mm512_set1_epi64(static_cast<long long>(both)))};
#else
  float f[16];
  for (int i = 0; i < 16; i += 2) f[i] = even, f[i + 1] = odd;
  return load(f);
#endif
}

inline void store_two(float* p, Lanes a, Lanes b) {
  store(p, a);
  store(p + 16, b);
}

inline void store_two(bf16* p, Lanes a, Lanes b) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
#elif defined(__AVX512F__)
  alignas(64) static constexpr std::uint16_t upper[32] = {
      1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
      33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i halves = _mm512_load_si512(upper);
  _mm512_storeu_si512(p, _mm512_permutex2var_epi16(nearest_bf16(a), halves, nearest_bf16(b)));
#else
  store_bf16(p, a);
  store_bf16(p + 16, b);
#endif
}

}  // namespace
}  // namespace tokenvm
