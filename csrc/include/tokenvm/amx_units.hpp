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

// Lines of one head of a page to bring near: those that hold the tokens somebody sees, keys before values.
class PageAhead {
 public:
  PageAhead() = default;

  // The share `part` of `parts` of them.
  PageAhead(const WalkJob& job, const Ahead& ahead, std::int64_t part, std::int64_t parts)
      : head_(ahead.head), pitch_(4 * job.tokens), key_rows_(job.head_dim / 2) {
    if (head_ == nullptr || ahead.begin >= ahead.end) return;
    const std::int64_t first = floor_to(ahead.begin, 32), last = ceil_to(ahead.end, 32);
    whole_ = last - first == job.tokens;
    key_lines_ = (last - first) / 16;
    first_ = 4 * first;
    values_ = 2 * job.head_dim * (job.tokens + first);
    const std::int64_t lines = 2 * key_rows_ * key_lines_;
    const std::int64_t share = ceil_to((lines + parts - 1) / parts, kUnitRows), from = share * part;
    left_ = from >= lines ? 0 : share < lines - from ? share : lines - from;
    if (left_ > 0) seek(from);
  }

  std::int64_t lines() const { return left_; }

  // The first of all lines, which lie side by side; null where they do not.
  const char* stretch() const { return whole_ && left_ > 0 ? line_ : nullptr; }

  void bring(std::int64_t lines) {
    for (; lines > 0 && left_ > 0; --lines, --left_) {
      _mm_prefetch(line_, _MM_HINT_T1);
      line_ += 64;
      if (--run_ == 0) start_row(row_ + 1, 0);
    }
  }

 private:
  // All lines of values lie side by side, and so do those of one pair of dimensions of keys.
  void seek(std::int64_t from) {
    const std::int64_t row = from / key_lines_;
    if (row < key_rows_) return start_row(row, from % key_lines_);
    start_row(key_rows_, from - key_rows_ * key_lines_);
  }

  void start_row(std::int64_t row, std::int64_t line) {
    row_ = row;
    line_ = head_ + (row < key_rows_ ? row * pitch_ + first_ : values_) + 64 * line;
    run_ = row < key_rows_ ? key_lines_ - line : left_;
  }

  const char* head_ = nullptr;
  const char* line_ = nullptr;
  std::int64_t pitch_ = 0, key_rows_ = 0, key_lines_ = 0, first_ = 0, values_ = 0;
  std::int64_t row_ = 0, run_ = 0, left_ = 0;
  bool whole_ = false;
};

// The units of a walk in order: page after page, all tiles of rows of each. What no row sees is left out.
class Units {
 public:
  Units(const WalkJob& job) : job_(job), tiles_(ceil_to(job.rows, kUnitRows) / kUnitRows) {
    for (std::int64_t r = 0; r < job.rows; ++r) {
      newest_ = job.position[r] > newest_ ? job.position[r] : newest_;
      oldest_ = job.position[r] < oldest_ ? job.position[r] : oldest_;
    }
  }

  // The share of what is read after `unit`'s page that is brought near while `unit` waits for its softmax.
  PageAhead share_ahead(const Unit& unit) const {
    if (unit.page + 1 == job_.page_count) return {job_, job_.after, unit.tile, tiles_};
    const std::int64_t start = job_.start + (unit.page + 1) * job_.tokens;
    const Ahead next{keys_of(job_, unit.page + 1), seen_tokens(oldest_ - start, job_.window, job_.tokens, false).begin,
                     seen_tokens(newest_ - start, job_.window, job_.tokens, job_.later).end};
    return {job_, next, unit.tile, tiles_};
  }

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
  std::int64_t newest_ = 0, oldest_ = INT64_MAX;
};

}  // namespace
}  // namespace tokenvm
