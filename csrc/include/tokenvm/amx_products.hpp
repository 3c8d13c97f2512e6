// Tile products of attention in steps, so that they can run beside a softmax. Include after lane_attention.hpp.
#pragma once

#include "tokenvm/amx_fixed.hpp"
#include "tokenvm/amx_softmax.hpp"
#include "tokenvm/amx_tiles.hpp"

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

// The tile products that run beside the softmax of one unit: the weights of the unit before it times their
// values, then the queries of the unit after it times their keys. A step is two TDPBF16PS where it can be. The
// results of a step are stored one or two steps later, when they are there: a store that waits would hold up
// loads from addresses with the same low bits.
class Products {
 public:
  Products(const WalkJob& job) : job_(job) {}

  // Either may be null.
  void begin(const Unit* weighed, const Unit* next) {
    weighed_ = weighed, next_ = next;
    group_ = chunk_ = half_ = column_ = 0;
    value_steps_ = weighed == nullptr ? 0 : weighed->tokens() / 32 * (job_.head_dim / 32);
    key_steps_ = next == nullptr ? 0 : next->tokens() / 16;
    ahead_ = next == nullptr ? PageAhead{nullptr, 0} : share_ahead(job_, *next);
    lines_ = steps() > 0 ? ahead_.lines / steps() + 1 : ahead_.lines;
  }

  std::int64_t steps() const { return value_steps_ + key_steps_; }

  // One step; false if all are done.
  bool step() {
    prefetch();
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
  void prefetch() {
    for (std::int64_t i = 0; i < lines_ && ahead_.lines > 0; ++i, --ahead_.lines, ahead_.data += 64)
      _mm_prefetch(ahead_.data, _MM_HINT_T1);
  }

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
  const Unit* weighed_ = nullptr;
  const Unit* next_ = nullptr;
  std::int64_t group_ = 0, chunk_ = 0, half_ = 0, column_ = 0;
  std::int64_t value_steps_ = 0, key_steps_ = 0;
  PageAhead ahead_{nullptr, 0};
  std::int64_t lines_ = 0;
};

}  // namespace
}  // namespace tokenvm
