// Tile registers: their configuration, and blocks of products. One TDPBF16PS is one k32 step of 16 rows x 16
// outputs.
#pragma once

#include <immintrin.h>

#include "tokenvm/numerics.hpp"

namespace tokenvm {
namespace {

constexpr std::int64_t kTile = 512;  // bf16 elements of a tile: 16 rows of 64 bytes

// All eight tile registers as 16 rows of 64 bytes, on this thread, until the end of the scope.
class TileScope {
 public:
  TileScope() {
    struct alignas(64) Config {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    const Config config;
    asm volatile("" ::"r"(&config) : "memory");  // the intrinsic names only the first bytes as its input
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// The intrinsics want the number of a register spelled out; these take it as a template argument.
template <int Register>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Register));
}

template <int Sum, int Left, int Right>
inline void add_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Left), "i"(Right));
}

// `stride` in bytes.
template <int Register>
inline void load_tile(const void* data, std::int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(Register), "r"(data), "r"(stride));
}

// `stride` in bytes.
template <int Register>
inline void store_whole_tile(float* out, std::int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(Register), "r"(out), "r"(stride) : "memory");
}

// Tiles that follow one another along the summed dimension: `step` elements apart, rows `stride` bytes apart.
// `next` elements lead to the neighbouring 16 rows (left operand) or 16 outputs (right operand).
struct TileRun {
  const bf16* data;
  std::int64_t step, stride, next;

  const bf16* at(std::int64_t chunk, std::int64_t neighbour) const {
    return data + chunk * step + neighbour * next;
  }
};

constexpr std::int64_t kAheadBytes = 2048;

// Brings tiles near that lie a little further on; for right operands that come from memory and are used once.
template <int N>
inline void prefetch_tiles(const TileRun& b, std::int64_t chunk) {
  for (int n = 0; n < N; ++n) {
    const char* tile = reinterpret_cast<const char*>(b.at(chunk, n)) + kAheadBytes;
    for (int line = 0; line < 16; ++line) __builtin_prefetch(tile + line * 64);
  }
}

// Sums `chunks` steps of M x N tiles (2x2, 2x1, 1x4, 1x2 or 1x1) into the registers 0..M*N-1, row-major, from
// zero.
template <int M, int N>
inline void multiply(const TileRun& a, const TileRun& b, std::int64_t chunks) {
  static_assert(M * N <= 4 && (M == 1 || N <= 2));
  asm volatile("" ::: "memory");  // the compiler does not know that a tile load reads what was just written
  _tile_zero(0);
  if constexpr (M * N >= 2) _tile_zero(1);
  if constexpr (M * N >= 3) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t k = 0; k < chunks; ++k) {
    if constexpr (N == 4) prefetch_tiles<N>(b, k);
    _tile_loadd(4, a.at(k, 0), a.stride);
    _tile_loadd(6, b.at(k, 0), b.stride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (M == 2) {
      _tile_loadd(5, a.at(k, 1), a.stride);
      if constexpr (N == 1)
        _tile_dpbf16ps(1, 5, 6);
      else
        _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (N >= 2) {
      _tile_loadd(7, b.at(k, 1), b.stride);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (M == 2 && N == 2) _tile_dpbf16ps(3, 5, 7);
    if constexpr (N == 4) {
      _tile_loadd(6, b.at(k, 2), b.stride);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, b.at(k, 3), b.stride);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
}

// One result register to memory; `stride` in bytes.
template <int Register>
inline void store_register(float* out, std::int64_t stride) {
  if constexpr (Register == 0) _tile_stored(0, out, stride);
  if constexpr (Register == 1) _tile_stored(1, out, stride);
  if constexpr (Register == 2) _tile_stored(2, out, stride);
  if constexpr (Register == 3) _tile_stored(3, out, stride);
  asm volatile("" ::: "memory");
}

template <int Register>
inline void store_tile(float* out, std::int64_t stride, std::int64_t rows) {
  if (rows >= 16) return store_register<Register>(out, stride * 4);
  alignas(64) float tile[256];
  store_register<Register>(tile, 64);
  for (std::int64_t r = 0; r < rows; ++r) _mm512_storeu_ps(out + r * stride, _mm512_load_ps(tile + r * 16));
}

// Stores the M x N result tiles at out (row stride in floats). Only `rows` rows are written.
template <int M, int N>
inline void store_tiles(float* out, std::int64_t stride, std::int64_t rows) {
  float* lower = out + 16 * stride;
  store_tile<0>(out, stride, rows);
  if constexpr (N >= 2) store_tile<1>(out + 16, stride, rows);
  if constexpr (M == 2) store_tile<N>(lower, stride, rows - 16);
  if constexpr (M == 2 && N == 2) store_tile<3>(lower + 16, stride, rows - 16);
  if constexpr (N == 4) {
    store_tile<2>(out + 32, stride, rows);
    store_tile<3>(out + 48, stride, rows);
  }
}

}  // namespace
}  // namespace tokenvm
