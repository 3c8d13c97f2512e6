// What a walk on tile registers consists of: sixteen query rows against one page at a time.
#pragma once

#include "tokenvm/amx_softmax.hpp"

namespace tokenvm {
namespace {

// Sixteen query rows against one page.
struct Unit {
  const bf16* q;       // [head_dim/32][16][32]
  const char* keys;    // of this page; the values follow
  std::int64_t page;   // counted from the walk's first
  std::int64_t tile;   // of the walk's rows
  Scores scores;
  bool whole;
  std::int32_t begin[kUnitRows], end[kUnitRows];
  alignas(64) float peak[kUnitRows], mass[kUnitRows];

  std::int64_t tokens() const { return scores.last - scores.first; }
};

inline const char* keys_of(const WalkJob& job, std::int64_t page) {
  return reinterpret_cast<const char*>(static_cast<std::uintptr_t>(job.parts[page])) + job.head_bytes;
}

// Lines to bring near.
struct PageAhead {
  const char* data;
  std::int64_t lines;
};

// The share of the page after `unit`'s that is brought near while `unit` waits for its softmax.
inline PageAhead share_ahead(const WalkJob& job, const Unit& unit) {
  if (unit.page + 1 >= job.page_count) return {nullptr, 0};
  const std::int64_t lines = job.tokens * job.head_dim / 16, tiles = ceil_to(job.rows, kUnitRows) / kUnitRows;
  const std::int64_t share = ceil_to((lines + tiles - 1) / tiles, kUnitRows), from = share * unit.tile;
  const std::int64_t left = lines - from;
  if (left <= 0) return {nullptr, 0};
  return {keys_of(job, unit.page + 1) + 64 * from, share < left ? share : left};
}

// The units of a walk in order: page after page, all tiles of rows of each. What no row sees is left out.
class Units {
 public:
  Units(const WalkJob& job) : job_(job), tiles_(ceil_to(job.rows, kUnitRows) / kUnitRows) {}

  // Fills `unit`; false at the end.
  bool next(Unit& unit, float* scores) {
    for (; page_ < job_.page_count; ++page_, tile_ = 0)
      while (tile_ < tiles_)
        if (fill(unit, tile_++, scores)) return true;
    return false;
  }

 private:
  bool fill(Unit& unit, std::int64_t tile, float* scores) const {
    const std::int64_t T = job_.tokens, start = job_.start + page_ * T, first = tile * kUnitRows;
    const std::int64_t rows = job_.rows - first < kUnitRows ? job_.rows - first : kUnitRows;
    const Span span = see(unit, first, rows, start);
    if (span.begin >= span.end) return false;
    unit.q = job_.q_tiles + first * job_.head_dim;
    unit.keys = keys_of(job_, page_);
    unit.page = page_;
    unit.tile = tile;
    unit.scores = {scores,     T,        rows,       floor_to(span.begin, 32), ceil_to(span.end, 32),
                   unit.begin, unit.end, job_.scale, unit.peak,                unit.mass};
    return true;
  }

  bool all_see(const std::int64_t* position, std::int64_t rows, std::int64_t start) const {
    const __m512i newest = _mm512_set1_epi64(job_.window > 0 ? start + job_.window - 1 : INT64_MAX);
    const __m512i oldest = _mm512_set1_epi64(start + job_.tokens - (job_.later ? 0 : 1));
    bool all = true;
    for (std::int64_t r = 0; r < rows; r += 8) {
      const __mmask8 there = static_cast<__mmask8>(lanes_between(0, rows - r));
      const __m512i p = _mm512_maskz_loadu_epi64(there, position + r);
      all &= _mm512_mask_cmp_epi64_mask(there, p, oldest, _MM_CMPINT_LT) == 0 &&
             _mm512_mask_cmp_epi64_mask(there, p, newest, _MM_CMPINT_NLE) == 0;
    }
    return all;
  }

  // Sets what each row sees; returns what any sees.
  Span see(Unit& unit, std::int64_t first, std::int64_t rows, std::int64_t start) const {
    const std::int64_t T = job_.tokens;
    unit.whole = all_see(job_.position + first, rows, start);
    if (unit.whole) return {0, T};
    Span span{T, 0};
    for (std::int64_t r = 0; r < rows; ++r) {
      const Span seen = seen_tokens(job_.position[first + r] - start, job_.window, T, job_.later);
      unit.begin[r] = static_cast<std::int32_t>(seen.begin);
      unit.end[r] = static_cast<std::int32_t>(seen.end);
      if (seen.begin >= seen.end) continue;
      if (seen.begin < span.begin) span.begin = seen.begin;
      if (seen.end > span.end) span.end = seen.end;
    }
    return span;
  }

  const WalkJob& job_;
  const std::int64_t tiles_;
  std::int64_t page_ = 0, tile_ = 0;
};

}  // namespace
}  // namespace tokenvm
