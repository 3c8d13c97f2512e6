// The two dot products of the row law, for a block of rows times a block of outputs. The weight of output n
// at pair p (bf16) or at k (fp32) lies at w[block(n) * block_stride + p * step + n % 16 ...]: packed
// matrices and page parts are both of this form. Include after lanes_*.hpp and lane_math.hpp.
#pragma once

namespace tokenvm {
namespace {

// Where the weights of neighbouring outputs lie, in elements.
struct Weights {
  const void* data;
  std::int64_t step;          // from pair p to p + 1 (bf16), from k to k + 1 (fp32)
  std::int64_t block_stride;  // from 16 outputs to the next 16
  const void* ahead;          // what to bring near meanwhile: as many bytes as are read here
};

struct Rows {
  const float* data;
  std::int64_t stride;
};

struct Outputs {
  float* data;
  std::int64_t stride;
  std::int64_t columns;  // valid outputs from `data` on
};

template <int R, int B>
inline void store_block(const Lanes (&acc)[R][B], const Outputs& out) {
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b)
      store_some(out.data + r * out.stride + 16 * b, acc[r][b], out.columns - 16 * b);
}

// k32: chunks of 32 from k0 (a multiple of 32); even and odd products in two accumulators that are added per
// chunk.
struct DotBf16 {
  using Weight = bf16;
  static constexpr std::int64_t kGranule = 2;

  template <int R, int B>
  static void block(Rows x, Weights w, std::int64_t k0, std::int64_t k1, Outputs out) {
    const bf16* base = static_cast<const bf16*>(w.data);
    const char* ahead = static_cast<const char*>(w.ahead) + k0 / 2 * 64 * B;
    Lanes acc[R][B];
    for (auto& row : acc)
      for (auto& lanes : row) lanes = zero_lanes();
    for (std::int64_t k = k0; k < k1; k += 32) {
      Lanes even[R][B], odd[R][B];
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) even[r][b] = odd[r][b] = zero_lanes();
      const std::int64_t stop = k + 32 < k1 ? k + 32 : k1;
      for (std::int64_t kk = k; kk < stop; kk += 2) {
        Lanes weven[B], wodd[B];
        for (int b = 0; b < B; ++b, ahead += 64) __builtin_prefetch(ahead);
        for (int b = 0; b < B; ++b)
          load_pairs(base + kk / 2 * w.step + b * w.block_stride, weven[b], wodd[b]);
        for (int r = 0; r < R; ++r) {
          const Lanes xeven = broadcast(x.data[r * x.stride + kk]),
                      xodd = broadcast(x.data[r * x.stride + kk + 1]);
          for (int b = 0; b < B; ++b) {
            even[r][b] = fma(xeven, weven[b], even[r][b]);
            odd[r][b] = fma(xodd, wodd[b], odd[r][b]);
          }
        }
      }
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) acc[r][b] = add(acc[r][b], add(even[r][b], odd[r][b]));
    }
    store_block(acc, out);
  }

  // One output; `w` points at its first pair.
  static float one(const float* x, const bf16* w, std::int64_t step, std::int64_t k0, std::int64_t k1) {
    float acc = 0.0f;
    for (std::int64_t k = k0; k < k1; k += 32) {
      float even = 0.0f, odd = 0.0f;
      const std::int64_t stop = k + 32 < k1 ? k + 32 : k1;
      for (std::int64_t kk = k; kk < stop; kk += 2) {
        even = __builtin_fmaf(x[kk], widen(w[kk / 2 * step]), even);
        odd = __builtin_fmaf(x[kk + 1], widen(w[kk / 2 * step + 1]), odd);
      }
      acc = acc + (even + odd);
    }
    return acc;
  }
};

struct DotFp32 {
  using Weight = float;
  static constexpr std::int64_t kGranule = 1;

  template <int R, int B>
  static void block(Rows x, Weights w, std::int64_t k0, std::int64_t k1, Outputs out) {
    const float* base = static_cast<const float*>(w.data);
    const char* ahead = static_cast<const char*>(w.ahead) + k0 * 64 * B;
    Lanes acc[R][B];
    for (auto& row : acc)
      for (auto& lanes : row) lanes = zero_lanes();
    for (std::int64_t k = k0; k < k1; ++k) {
      Lanes weight[B];
      for (int b = 0; b < B; ++b, ahead += 64) __builtin_prefetch(ahead);
      for (int b = 0; b < B; ++b) weight[b] = load(base + k * w.step + b * w.block_stride);
      for (int r = 0; r < R; ++r) {
        const Lanes value = broadcast(x.data[r * x.stride + k]);
        for (int b = 0; b < B; ++b) acc[r][b] = fma(value, weight[b], acc[r][b]);
      }
    }
    store_block(acc, out);
  }

  static float one(const float* x, const float* w, std::int64_t step, std::int64_t k0, std::int64_t k1) {
    float acc = 0.0f;
    for (std::int64_t k = k0; k < k1; ++k) acc = __builtin_fmaf(x[k], w[k * step], acc);
    return acc;
  }
};

template <class Dot, int B>
inline void dot_rows(std::int64_t rows, Rows x, Weights w, std::int64_t k0, std::int64_t k1, Outputs out) {
  static_assert(kRowBlock <= 4);
  switch (rows) {
    case 1:
      return Dot::template block<1, B>(x, w, k0, k1, out);
    case 2:
      return Dot::template block<2, B>(x, w, k0, k1, out);
    case 3:
      return Dot::template block<(kRowBlock >= 3 ? 3 : 1), B>(x, w, k0, k1, out);
    default:
      return Dot::template block<(kRowBlock >= 4 ? 4 : 1), B>(x, w, k0, k1, out);
  }
}

// Up to kRowBlock rows times out.columns outputs. Every block of 16 weights that is read must exist.
template <class Dot>
inline void dot(std::int64_t rows, Rows x, Weights w, std::int64_t k0, std::int64_t k1, Outputs out) {
  const auto* base = static_cast<const typename Dot::Weight*>(w.data);
  const auto part = [&](std::int64_t n) {
    const std::int64_t block = n / 16, bytes = block * 64 * ceil_to(k1, Dot::kGranule) / Dot::kGranule;
    return Weights{base + block * w.block_stride, w.step, w.block_stride,
                   static_cast<const char*>(w.ahead) + bytes};
  };
  std::int64_t n = 0;
  for (; n + 16 * (kColumnBlock - 1) < out.columns; n += 16 * kColumnBlock)
    dot_rows<Dot, kColumnBlock>(rows, x, part(n), k0, k1, {out.data + n, out.stride, out.columns - n});
  for (; n < out.columns; n += 16)
    dot_rows<Dot, 1>(rows, x, part(n), k0, k1, {out.data + n, out.stride, out.columns - n});
}

}  // namespace
}  // namespace tokenvm
