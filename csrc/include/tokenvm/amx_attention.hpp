// Attention of some query rows over consecutive pages on tile registers; the same bits as lane_attention.hpp,
// page by page. Include after it.
#pragma once

#include "tokenvm/amx_fixed.hpp"
#include "tokenvm/amx_units.hpp"

namespace tokenvm {
namespace {

// The tile products that run beside the softmax of one unit: the weights of the unit before it times their
// values, then the queries of the unit after it times their keys. A step is two TDPBF16PS where it can be. The
// results of a step are stored one or two steps later, when they are there: a store that waits would hold up
// loads from addresses with the same low bits.
class Products {
 public:
  Products(const WalkJob& job, const Units& units) : job_(job), units_(units) {}

  // Either may be null.
  void begin(const Unit* weighed, const Unit* next) {
    weighed_ = weighed, next_ = next;
    group_ = chunk_ = half_ = column_ = 0;
    value_steps_ = weighed == nullptr ? 0 : weighed->tokens() / 32 * (job_.head_dim / 32);
    key_steps_ = next == nullptr ? 0 : next->tokens() / 16;
    ahead_ = next == nullptr ? PageAhead() : units_.share_ahead(*next);
    lines_ = steps() > 0 ? ahead_.lines() / steps() + 1 : ahead_.lines();
  }

  std::int64_t steps() const { return value_steps_ + key_steps_; }

  // One step; false if all are done.
  bool step() {
    ahead_.bring(lines_);
    asm volatile("" ::: "memory");
    if (value_steps_ > 0)
      value_step();
    else if (key_steps_ > 0)
      key_step();
    else
      return false;
    asm volatile("" ::: "memory");
    return true;
  }

 private:
  void value_step() {
    const std::int64_t D = job_.head_dim;
    const bf16* values = reinterpret_cast<const bf16*>(weighed_->keys) + job_.tokens * D;
    const bf16* v = values + (weighed_->scores.first + 32 * chunk_) * D + 2 * (64 * group_ + 32 * half_);
    if (chunk_ == 0 && half_ == 0) zero_group();
    if (half_ == 0) _tile_loadd(4, weighed_->scores.data + 16 * chunk_, weighed_->scores.pitch * 4);
    _tile_loadd(5, v, 4 * D);
    _tile_loadd(6, v + 32, 4 * D);
    if (half_ == 0) {
      _tile_dpbf16ps(0, 4, 5);
      _tile_dpbf16ps(1, 4, 6);
    } else {
      _tile_dpbf16ps(2, 4, 5);
      _tile_dpbf16ps(3, 4, 6);
    }
    --value_steps_;
    next_value();
  }

  void zero_group() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  bool wide_group() const { return 64 * group_ + 64 <= job_.head_dim; }

  void next_value() {
    if (half_ == 0 && wide_group()) {
      half_ = 1;
      return;
    }
    half_ = 0;
    if (32 * ++chunk_ < weighed_->tokens()) return;
    chunk_ = 0;
    store_group();
    ++group_;
  }

  void store_group() {
    float* acc = job_.page_acc + 64 * group_;
    const std::int64_t stride = 4 * job_.head_dim;
    _tile_stored(0, acc, stride);
    _tile_stored(1, acc + 16, stride);
    if (!wide_group()) return;
    _tile_stored(2, acc + 32, stride);
    _tile_stored(3, acc + 48, stride);
  }

  // Columns of scores rotate through the registers 2, 3 and 4. Two chunks of queries stay in 0 and 1.
  void key_step() {
    const std::int64_t chunks = job_.head_dim / 32;
    if (column_ == 0) {
      _tile_loadd(0, next_->q, 64);
      if (chunks > 1) _tile_loadd(1, next_->q + kTile, 64);
    }
    switch (column_ % 3) {
      case 0:
        if (column_ >= 2) store_column<3>(column_ - 2);
        key_column<2>(chunks);
        break;
      case 1:
        if (column_ >= 2) store_column<4>(column_ - 2);
        key_column<3>(chunks);
        break;
      default:
        store_column<2>(column_ - 2);
        key_column<4>(chunks);
    }
    ++column_;
    if (--key_steps_ == 0) store_last(column_ - 2), store_last(column_ - 1);
  }

  template <int Register>
  void key_column(std::int64_t chunks) {
    const std::int64_t stride = 4 * job_.tokens;
    const bf16* k = reinterpret_cast<const bf16*>(next_->keys) + 2 * (next_->scores.first + 16 * column_);
    zero_tile<Register>();
    _tile_loadd(5, k, stride);
    add_product<Register, 0, 5>();
    if (chunks == 1) return;
    _tile_loadd(6, k + 32 * job_.tokens, stride);
    add_product<Register, 1, 6>();
    for (std::int64_t c = 2; c < chunks; ++c) {
      _tile_loadd(7, next_->q + c * kTile, 64);
      _tile_loadd(5, k + c * 32 * job_.tokens, stride);
      add_product<Register, 7, 5>();
    }
  }

  template <int Register>
  void store_column(std::int64_t column) {
    store_whole_tile<Register>(next_->scores.data + 16 * column, next_->scores.pitch * 4);
  }

  void store_last(std::int64_t column) {
    if (column % 3 == 0) return store_column<2>(column);
    if (column % 3 == 1) return store_column<3>(column);
    store_column<4>(column);
  }

  const WalkJob& job_;
  const Units& units_;
  const Unit* weighed_ = nullptr;
  const Unit* next_ = nullptr;
  std::int64_t group_ = 0, chunk_ = 0, half_ = 0, column_ = 0;
  std::int64_t value_steps_ = 0, key_steps_ = 0;
  PageAhead ahead_;
  std::int64_t lines_ = 0;
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
inline bool turn_fixed(const WalkJob& job, const Units& units, const Unit* weighed, const Unit* current,
                       const Unit* next) {
  if (job.head_dim != D || job.tokens != T || job.partial) return false;
  for (const Unit* unit : {weighed, current, next})
    if (unit == nullptr || !unit->whole || unit->scores.rows != kUnitRows) return false;
  const std::int64_t first = weighed->tile * kUnitRows;
  alignas(64) float keep[16], take[16];
  fold_scalars(16, weighed->peak, weighed->mass, job.peak + first, job.mass + first, keep, take);
  const PageAhead ahead = units.share_ahead(*next);
  FixedStretch<D, T> stretch{.q = next->q,
                             .keys = reinterpret_cast<const bf16*>(next->keys),
                             .next_scores = next->scores.data,
                             .values = reinterpret_cast<const bf16*>(weighed->keys) + T * D,
                             .page_acc = job.page_acc,
                             .acc = job.acc + first * D,
                             .keep = keep,
                             .take = take,
                             .ahead = ahead.stretch(),
                             .lines = ahead.stretch() == nullptr ? 0 : ahead.lines() / kUnitRows};
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
  Products products(job, units);
  Unit slots[3];
  Unit *weighed = nullptr, *current = nullptr;
  const std::int64_t buffer = kUnitRows * job.tokens;
  for (std::int64_t i = 0;; ++i) {
    Unit* next = units.next(slots[i % 3], job.scores + i % 2 * buffer) ? &slots[i % 3] : nullptr;
    if (next == nullptr && current == nullptr && weighed == nullptr) return;
    if (!turn_fixed<64, 128>(job, units, weighed, current, next) &&
        !turn_fixed<64, 64>(job, units, weighed, current, next))
      turn(job, products, weighed, current, next);
    weighed = current, current = next;
  }
}

}  // namespace
}  // namespace tokenvm
