// The inner stretch of a walk, for pages of a known shape: three neighbouring units of sixteen rows that see all
// of their page, straight-line code. Include after amx_attention.hpp's units.
#pragma once

#include <utility>

#include "tokenvm/amx_softmax.hpp"
#include "tokenvm/amx_tiles.hpp"

namespace tokenvm {
namespace {

// While row after row of one unit is weighed, the tile unit multiplies the weights of the unit before with its
// values (rows 0 to 7), then the queries of the unit after with its keys, and the unit before is folded into its
// state (rows 8 to 15). Few products at a time: a queue of them would fill the window in which the processor
// reorders. A column of scores is stored when two more have been begun, since a store that waits holds up loads
// from addresses with the same low bits.
template <int D, int T>
struct FixedStretch {
  static constexpr int kChunks = D / 32, kValueProducts = T / 32 * (D / 16), kKeyProducts = T / 16 * kChunks;
  static_assert(kChunks <= 2);

  const bf16* q;       // of the unit after
  const bf16* keys;    // of the unit after
  float* next_scores;  // of the unit after; until they are written, the weights of the unit before
  const bf16* values;  // of the unit before
  float* page_acc;
  float* acc;  // the state of the unit before
  const float* keep;
  const float* take;
  const char* ahead;  // lines to bring near
  std::int64_t lines;

  // What stands after row R.
  template <int R>
  void between() {
    for (std::int64_t i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
    if constexpr (R < 8) {
      if constexpr (R == 0) zero_values();
      value_products<R * kValueProducts / 8, (R + 1) * kValueProducts / 8>();
    } else {
      if constexpr (R == 8) store_values(), begin_keys();
      key_products<(R - 8) * kKeyProducts / 8, (R - 7) * kKeyProducts / 8>();
      if constexpr (R > 8) fold_some<(R - 9) * 16 / 7, (R - 8) * 16 / 7>();
    }
  }

  void end() { store_keys<T / 16 - 2>(), store_keys<T / 16 - 1>(); }

 private:
  void zero_values() {
    zero_tile<0>();
    zero_tile<1>();
    if constexpr (D == 64) zero_tile<2>(), zero_tile<3>();
  }

  template <int From, int To>
  void value_products() {
    if constexpr (From < To) {
      constexpr int chunk = From / (D / 16), column = From % (D / 16);
      if constexpr (column == 0) load_tile<4>(next_scores + 16 * chunk, 4 * T);
      load_tile<5 + From % 2>(values + chunk * 32 * D + column * 32, 4 * D);
      add_product<column, 4, 5 + From % 2>();
      value_products<From + 1, To>();
    }
  }

  void store_values() {
    store_whole_tile<0>(page_acc, 4 * D);
    store_whole_tile<1>(page_acc + 16, 4 * D);
    if constexpr (D == 64) {
      store_whole_tile<2>(page_acc + 32, 4 * D);
      store_whole_tile<3>(page_acc + 48, 4 * D);
    }
  }

  void begin_keys() {
    load_tile<0>(q, 64);
    if constexpr (D == 64) load_tile<1>(q + kTile, 64);
  }

  template <int From, int To>
  void key_products() {
    if constexpr (From < To) {
      constexpr int column = From / kChunks, chunk = From % kChunks, sum = 2 + column % 3, right = 5 + From % 3;
      if constexpr (chunk == 0) {
        if constexpr (column > 1) store_keys<column - 2>();
        zero_tile<sum>();
      }
      load_tile<right>(keys + 32 * column + 32 * T * chunk, 4 * T);
      add_product<sum, chunk, right>();
      key_products<From + 1, To>();
    }
  }

  template <int Column>
  void store_keys() {
    store_whole_tile<2 + Column % 3>(next_scores + 16 * Column, 4 * T);
  }

  template <int From, int To>
  void fold_some() {
    for (int r = From; r < To; ++r) {
      const __m512 a = _mm512_set1_ps(keep[r]), b = _mm512_set1_ps(take[r]);
      for (int d = r * D; d < (r + 1) * D; d += 16)
        _mm512_storeu_ps(acc + d, _mm512_fmadd_ps(_mm512_load_ps(page_acc + d), b,
                                                  _mm512_mul_ps(_mm512_loadu_ps(acc + d), a)));
    }
  }
};

// The softmax of `s`, of which all sixteen rows see all T tokens, beside a stretch.
template <int D, int T, std::size_t... R>
inline void softmax_stretch(const Scores& s, FixedStretch<D, T>& stretch, std::index_sequence<R...>) {
  const Scores fixed{s.data, T, 16, 0, T, nullptr, nullptr, s.scale, s.peak, s.mass};
  alignas(64) float offset[16], sums[16][16];
  _mm512_store_ps(offset, find_peaks<true>(fixed));
  const auto row = [&]<int Row>() {
    _mm512_store_ps(sums[Row], weigh_row<true>(fixed, Row, offset[Row]));
    asm volatile("" ::: "memory");
    stretch.template between<Row>();
    asm volatile("" ::: "memory");
  };
  (row.template operator()<static_cast<int>(R)>(), ...);
  stretch.end();
  asm volatile("" ::: "memory");
  __m512 mass[16];
  for (int r = 0; r < 16; ++r) mass[r] = _mm512_load_ps(sums[r]);
  _mm512_storeu_ps(s.mass, combine_lanes(mass, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); }));
}

}  // namespace
}  // namespace tokenvm
