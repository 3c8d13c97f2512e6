// CRC-32C in three ways: slices of eight tables everywhere; three interleaved hardware streams on x86 with SSE4.2;
// carry-less products of 512 bits where there is AVX-512 with VPCLMULQDQ.
// The instruction has a latency of three cycles and a throughput of one, so three independent streams fill it; their
// results are joined by "append N zero bytes", a linear map kept as four tables of 256 (Adler, crc32c.c, 2013).
// Folding multiplies 128 bits by x^d, modulo the polynomial, onto the bits that come d later (Gopal et al., Fast CRC
// Computation Using PCLMULQDQ, Intel 2009); what is left, 16 bytes, goes through the instruction.
#include "tokenvm/crc32c.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tokenvm {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78u;
using Table = std::array<uint32_t, 256>;

constexpr std::array<Table, 8> make_slices() {
  std::array<Table, 8> slices{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    slices[0][byte] = crc;
  }
  for (size_t s = 1; s < 8; ++s)
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = slices[s - 1][byte];
      slices[s][byte] = (before >> 8) ^ slices[0][before & 0xff];
    }
  return slices;
}
constexpr std::array<Table, 8> kSlices = make_slices();

uint32_t step_bytes(const uint8_t* p, size_t n, uint32_t crc) noexcept {
  for (size_t i = 0; i < n; ++i) crc = (crc >> 8) ^ kSlices[0][(crc ^ p[i]) & 0xff];
  return crc;
}

uint64_t load64(const uint8_t* p) noexcept {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

#if defined(__x86_64__)
using Zeros = std::array<Table, 4>;  // appends a fixed number of zero bytes, one table per byte of the crc

constexpr Zeros make_zeros(size_t nbytes) {
  std::array<uint32_t, 32> columns{};
  for (size_t bit = 0; bit < 32; ++bit) {
    uint32_t crc = 1u << bit;
    for (size_t i = 0; i < nbytes; ++i) crc = (crc >> 8) ^ kSlices[0][crc & 0xff];
    columns[bit] = crc;
  }
  Zeros zeros{};
  for (size_t lane = 0; lane < 4; ++lane)
    for (size_t byte = 0; byte < 256; ++byte)
      for (size_t bit = 0; bit < 8; ++bit)
        if ((byte >> bit) & 1) zeros[lane][byte] ^= columns[lane * 8 + bit];
  return zeros;
}
constexpr size_t kLong = 4096;
constexpr size_t kShort = 256;
constexpr Zeros kLongZeros = make_zeros(kLong);
constexpr Zeros kShortZeros = make_zeros(kShort);

uint32_t append(const Zeros& zeros, uint32_t crc) noexcept {
  return zeros[0][crc & 0xff] ^ zeros[1][(crc >> 8) & 0xff] ^ zeros[2][(crc >> 16) & 0xff] ^ zeros[3][crc >> 24];
}

__attribute__((target("sse4.2"))) uint32_t three_streams(const uint8_t*& p, size_t& n, uint32_t crc, size_t block,
                                                         const Zeros& zeros) noexcept {
  while (n >= 3 * block) {
    uint64_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < block; i += 8) {
      a = _mm_crc32_u64(a, load64(p + i));
      b = _mm_crc32_u64(b, load64(p + block + i));
      c = _mm_crc32_u64(c, load64(p + 2 * block + i));
    }
    crc = append(zeros, static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b);
    crc = append(zeros, crc) ^ static_cast<uint32_t>(c);
    p += 3 * block;
    n -= 3 * block;
  }
  return crc;
}

__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(const uint8_t* p, size_t n, uint32_t crc) noexcept {
  crc = three_streams(p, n, crc, kLong, kLongZeros);
  crc = three_streams(p, n, crc, kShort, kShortZeros);
  uint64_t wide = crc;
  for (; n >= 8; p += 8, n -= 8) wide = _mm_crc32_u64(wide, load64(p));
  crc = static_cast<uint32_t>(wide);
  for (; n > 0; ++p, --n) crc = _mm_crc32_u8(crc, *p);
  return crc;
}

// x^n modulo the polynomial, reflected, shifted by the one bit that a reflected product of two is short of.
constexpr int64_t fold_constant(unsigned n) {
  uint32_t power = 0x80000000u;
  for (unsigned i = 0; i < n; ++i) power = (power >> 1) ^ ((power & 1) ? kPolynomial : 0);
  return static_cast<int64_t>(static_cast<uint64_t>(power) << 1);
}

// Carries both halves of each 128 bits `kBits` further and adds what lies there.
template <unsigned kBits>
__attribute__((target("avx512f,vpclmulqdq"), always_inline)) inline __m512i fold(__m512i from, __m512i onto) noexcept {
  constexpr int64_t low = fold_constant(kBits + 32), high = fold_constant(kBits - 32);
  const __m512i by = _mm512_set_epi64(high, low, high, low, high, low, high, low);
  const __m512i a = _mm512_clmulepi64_epi128(from, by, 0x00), b = _mm512_clmulepi64_epi128(from, by, 0x11);
  return _mm512_ternarylogic_epi64(a, b, onto, 0x96);
}

constexpr size_t kFolded = 256;

__attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2"))) uint32_t crc32c_folded(const uint8_t* p, size_t n,
                                                                                   uint32_t crc) noexcept {
  if (n < kFolded) return crc32c_sse42(p, n, crc);
  __m512i sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = _mm512_loadu_si512(p + 64 * i);
  sums[0] = _mm512_xor_si512(sums[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(crc))));
  for (p += kFolded, n -= kFolded; n >= kFolded; p += kFolded, n -= kFolded)
    for (int i = 0; i < 4; ++i) sums[i] = fold<2048>(sums[i], _mm512_loadu_si512(p + 64 * i));
  __m512i all = sums[0];
  for (int i = 1; i < 4; ++i) all = fold<512>(all, sums[i]);
  alignas(64) __m128i lanes[4];
  _mm512_store_si512(lanes, all);
  const __m128i by = _mm_set_epi64x(fold_constant(128 - 32), fold_constant(128 + 32));
  __m128i last = lanes[0];
  for (int i = 1; i < 4; ++i)
    last = _mm_xor_si128(lanes[i], _mm_xor_si128(_mm_clmulepi64_si128(last, by, 0x00), _mm_clmulepi64_si128(last, by, 0x11)));
  const uint64_t low = static_cast<uint64_t>(_mm_cvtsi128_si64(last));
  const uint64_t high = static_cast<uint64_t>(_mm_extract_epi64(last, 1));
  const uint64_t left = _mm_crc32_u64(_mm_crc32_u64(0, low), high);
  return crc32c_sse42(p, n, static_cast<uint32_t>(left));
}
#endif

}  // namespace

uint32_t crc32c_portable(const void* data, size_t nbytes, uint32_t crc) noexcept {
  const auto* p = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (; nbytes >= 8; p += 8, nbytes -= 8) {
    uint32_t next = 0;
    for (int i = 0; i < 4; ++i) next ^= kSlices[7 - i][((crc >> (8 * i)) ^ p[i]) & 0xff];
    for (int i = 4; i < 8; ++i) next ^= kSlices[7 - i][p[i]];
    crc = next;
  }
  return ~step_bytes(p, nbytes, crc);
}

uint32_t crc32c(const void* data, size_t nbytes, uint32_t crc) noexcept {
#if defined(__x86_64__)
  static const bool hardware = __builtin_cpu_supports("sse4.2");
  static const bool folds = hardware && __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("pclmul");
  if (folds) return ~crc32c_folded(static_cast<const uint8_t*>(data), nbytes, ~crc);
  if (hardware) return ~crc32c_sse42(static_cast<const uint8_t*>(data), nbytes, ~crc);
#endif
  return crc32c_portable(data, nbytes, crc);
}

}  // namespace tokenvm
