// Attention of some query rows over consecutive pages on tile registers; the same bits as lane_attention.hpp,
// page by page. Include after it.
#pragma once

#include "tokenvm/amx_products.hpp"

namespace tokenvm {
namespace {

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

// Takes what a unit gave into the state of its rows, or where the partial results of its page belong.
inline void take(const WalkJob& job, const Unit& unit) {
  const std::int64_t first = unit.tile * kUnitRows, rows = unit.scores.rows, D = job.head_dim;
  if (!job.partial)
    return fold_rows(rows, D, job.page_acc, unit.peak, unit.mass, job.acc + first * D, job.peak + first,
                     job.mass + first);
  const std::int64_t at = unit.page * job.partial_rows + first;
  std::memcpy(job.acc + at * D, job.page_acc, static_cast<std::size_t>(rows * D) * 4);
  std::memcpy(job.peak + at, unit.peak, static_cast<std::size_t>(rows) * 4);
  std::memcpy(job.mass + at, unit.mass, static_cast<std::size_t>(rows) * 4);
}

// The softmax of one unit with all steps of `products` spread over its rows.
template <bool Whole>
inline void softmax_beside(const Unit& unit, Products& products) {
  const std::int64_t rows = unit.scores.rows, steps = products.steps();
  std::int64_t due = 0;
  softmax_rows<Whole>(unit.scores, [&] {
    for (due += steps; due >= rows; due -= rows) products.step();
  });
}

// One turn of the pipeline for pages of D dimensions and T tokens; false if the units are not of the kind.
template <int D, int T>
inline bool turn_fixed(const WalkJob& job, const Unit* weighed, const Unit* current, const Unit* next) {
  if (job.head_dim != D || job.tokens != T || job.partial) return false;
  for (const Unit* unit : {weighed, current, next})
    if (unit == nullptr || !unit->whole || unit->scores.rows != kUnitRows) return false;
  const std::int64_t first = weighed->tile * kUnitRows;
  alignas(64) float keep[16], take[16];
  fold_scalars(16, weighed->peak, weighed->mass, job.peak + first, job.mass + first, keep, take);
  const PageAhead ahead = share_ahead(job, *next);
  FixedStretch<D, T> stretch{.q = next->q,
                             .keys = reinterpret_cast<const bf16*>(next->keys),
                             .next_scores = next->scores.data,
                             .values = reinterpret_cast<const bf16*>(weighed->keys) + T * D,
                             .page_acc = job.page_acc,
                             .acc = job.acc + first * D,
                             .keep = keep,
                             .take = take,
                             .ahead = ahead.data,
                             .lines = ahead.lines / kUnitRows};
  softmax_stretch(current->scores, stretch, std::make_index_sequence<16>());
  return true;
}

// One turn for any units, each of which may be missing.
inline void turn(const WalkJob& job, Products& products, const Unit* weighed, const Unit* current,
                 const Unit* next) {
  products.begin(weighed, next);
  if (current != nullptr) {
    if (current->whole)
      softmax_beside<true>(*current, products);
    else
      softmax_beside<false>(*current, products);
  }
  while (products.step()) {
  }
  if (weighed != nullptr) take(job, *weighed);
}

// A pipeline of three units: while one is in its softmax, the tile unit multiplies the one before and the one
// after. Two buffers of scores suffice, since the weights of the first are read before the scores of the third
// are written.
inline void walk_tiles(const WalkJob& job) {
  const TileScope tiles;
  Units units(job);
  Products products(job);
  Unit slots[3];
  Unit *weighed = nullptr, *current = nullptr;
  const std::int64_t buffer = kUnitRows * job.tokens;
  for (std::int64_t i = 0;; ++i) {
    Unit* next = units.next(slots[i % 3], job.scores + i % 2 * buffer) ? &slots[i % 3] : nullptr;
    if (next == nullptr && current == nullptr && weighed == nullptr) return;
    if (!turn_fixed<64, 128>(job, weighed, current, next) && !turn_fixed<64, 64>(job, weighed, current, next))
      turn(job, products, weighed, current, next);
    weighed = current, current = next;
  }
}

}  // namespace
}  // namespace tokenvm
