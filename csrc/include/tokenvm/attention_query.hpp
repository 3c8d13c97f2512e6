// Query rows that share a kv head, laid out for the kernels, against pages of their segment.
#pragma once

#include <algorithm>

#include "tokenvm/attention.hpp"
#include "tokenvm/kernels.hpp"
#include "tokenvm/quantise.hpp"
#include "tokenvm/scratch.hpp"

namespace tokenvm {
namespace {

// Query rows of one kv head: `rows` rows of the batch times the heads of the group, row by row.
struct Tile {
  std::int64_t segment, kv_head, row_begin, row_end;

  std::int64_t rows(const AttendCall& call) const { return (row_end - row_begin) * call.group(); }
};

// Where the partial results of one page lie: [rows][head_dim] and [rows]; those of the next page follow
// `stride` rows later.
struct Partial {
  float* acc;
  float* peak;
  float* mass;
  std::int64_t stride;
};

constexpr std::int64_t kPagesAtOnce = 4;  // quantised pages whose heads are in scratch at once

// What a thread keeps between tasks.
struct Workspace {
  Scratch q, scores, spans, rows, page_acc, numbers, state, head;
};

inline Workspace& workspace() {
  thread_local Workspace space;
  return space;
}

inline bool wants_tiles(const AttendCall& call, const Kernels& table) {
  return call.shape.narrow && table.walk_bf16 != nullptr && call.shape.head_dim % 32 == 0 &&
         call.shape.tokens % 32 == 0;
}

// Where each of the tile's rows (row, head) stands among all of the call.
inline const std::int64_t* places_of(const AttendCall& call, const Tile& tile) {
  const std::int64_t rows = tile.rows(call), group = call.group();
  std::int64_t* places = workspace().rows.reserve<std::int64_t>(static_cast<std::size_t>(rows));
  for (std::int64_t row = tile.row_begin, r = 0; row < tile.row_end; ++row)
    for (std::int64_t g = 0; g < group; ++g) places[r++] = row * call.q_heads + tile.kv_head * group + g;
  return places;
}

// One task's rows. Only one object at a time on a thread: they share its workspace.
class Query {
 public:
  Query(const AttendCall& call, const Kernels& table, const Tile& tile, const Ahead& after)
      : call_(call), table_(table), tile_(tile), after_(after), rows_(tile.rows(call)), tiled_(wants_tiles(call, table)) {
    places_ = places_of(call, tile);
    const auto padded = static_cast<std::size_t>(ceil_to(rows_, 16)), D = static_cast<std::size_t>(call.shape.head_dim);
    Workspace& space = workspace();
    q_ = space.q.reserve<char>(padded * D * 4);
    scores_ = space.scores.reserve<float>(std::max<std::size_t>(padded, 32) * static_cast<std::size_t>(call.shape.tokens));
    page_acc_ = space.page_acc.reserve<float>(padded * D);
    page_peak_ = space.numbers.reserve<float>(2 * padded);
    position_ = space.spans.reserve<std::int64_t>(2 * padded);
    tiled_ ? lay_tiles() : lay_rows();
  }

  // Folds all pages of the segment into the call's state.
  void fold_pages() {
    if (tiled_) return fold_tiles();
    for (std::int64_t page = 0; page < segment().page_count; ++page) {
      if (!look_at(page)) continue;
      attend(page, page_acc_, page_peak_, page_peak_ + rows_);
      table_.fold({rows_, call_.shape.head_dim, page_acc_, page_peak_, page_peak_ + rows_, places_, call_.state.acc,
                   call_.state.peak, call_.state.mass});
    }
  }

  // Writes what the pages [begin, end) of the segment give, from `out` on; peak -inf where a row sees nothing.
  void write_pages(std::int64_t begin, std::int64_t end, const Partial& out) {
    for (std::int64_t page = 0; page < end - begin; ++page)
      std::fill_n(out.peak + page * out.stride, rows_, -__builtin_inff());
    if (tiled_) return walk(begin, end, out);
    for (std::int64_t page = begin; page < end; ++page) {
      const std::int64_t at = (page - begin) * out.stride;
      if (look_at(page)) attend(page, out.acc + at * call_.shape.head_dim, out.peak + at, out.mass + at);
    }
  }

 private:
  const Segment& segment() const { return call_.segments[tile_.segment]; }

  bool raw() const { return call_.shape.format == KvFormat::kRaw; }

  std::int64_t head_bytes() const { return tile_.kv_head * call_.shape.head_bytes(); }

  std::int64_t start_of(std::int64_t page) const {
    return (call_.first_page[tile_.segment] + page) * call_.shape.tokens;
  }

  // The tile's states lie side by side while it walks the pages.
  void fold_tiles() {
    const std::int64_t D = call_.shape.head_dim;
    float* acc = workspace().state.reserve<float>(static_cast<std::size_t>(rows_ * (D + 2)));
    float *peak = acc + rows_ * D, *mass = peak + rows_;
    const StateView& state = call_.state;
    for (std::int64_t r = 0; r < rows_; ++r) {
      std::memcpy(acc + r * D, state.acc + places_[r] * D, static_cast<std::size_t>(D) * 4);
      peak[r] = state.peak[places_[r]];
      mass[r] = state.mass[places_[r]];
    }
    walk(0, segment().page_count, {acc, peak, mass, 0});
    for (std::int64_t r = 0; r < rows_; ++r) {
      std::memcpy(state.acc + places_[r] * D, acc + r * D, static_cast<std::size_t>(D) * 4);
      state.peak[places_[r]] = peak[r];
      state.mass[places_[r]] = mass[r];
    }
  }

  // The pages [begin, end) on tiles; with an `out.stride` of 0 they are folded into `out`.
  void walk(std::int64_t begin, std::int64_t end, Partial out) {
    if (raw()) return table_.walk_bf16(walk_job(begin, end - begin, parts() + begin, head_bytes(), out));
    for (; begin < end; begin += kPagesAtOnce) {
      const std::int64_t count = std::min(end - begin, kPagesAtOnce);
      std::uint64_t heads[kPagesAtOnce];
      dequantise_heads(begin, count, heads);
      table_.walk_bf16(walk_job(begin, count, heads, 0, out));
      out.acc += count * out.stride * call_.shape.head_dim;
      out.peak += count * out.stride;
      out.mass += count * out.stride;
    }
  }

  // Addresses of raw heads in scratch; some at once, so that tile products of one page run beside another's softmax.
  void dequantise_heads(std::int64_t begin, std::int64_t count, std::uint64_t* heads) {
    const PartShape& shape = call_.shape;
    const auto bytes = static_cast<std::size_t>(shape.head_elements() * shape.itemsize());
    char* scratch = workspace().head.reserve<char>(bytes * kPagesAtOnce);
    for (std::int64_t i = 0; i < count; ++i) {
      char* target = scratch + static_cast<std::size_t>(i) * bytes;
      table_.dequantise({target, const_cast<char*>(head_of(begin + i)), shape.head_dim, shape.tokens, shape.narrow,
                         shape.format});
      heads[i] = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(target));
    }
  }

  WalkJob walk_job(std::int64_t begin, std::int64_t count, const std::uint64_t* parts, std::int64_t head_bytes,
                   const Partial& out) const {
    return {.q_tiles = reinterpret_cast<const bf16*>(q_),
            .rows = rows_,
            .head_dim = call_.shape.head_dim,
            .tokens = call_.shape.tokens,
            .position = position_,
            .start = start_of(begin),
            .window = call_.window,
            .later = !raw(),
            .scale = call_.scale,
            .parts = parts,
            .head_bytes = head_bytes,
            .page_count = count,
            .after = raw() ? after_ : Ahead{},
            .scores = scores_,
            .page_acc = page_acc_,
            .acc = out.acc,
            .peak = out.peak,
            .mass = out.mass,
            .partial = out.stride > 0,
            .partial_rows = out.stride};
  }

  // Sets the visible span of every row in page `page` of the segment; false if no row sees anything.
  bool look_at(std::int64_t page) {
    const std::int64_t T = call_.shape.tokens, start = start_of(page);
    bool any = false;
    for (std::int64_t r = 0; r < rows_; ++r) {
      const Span seen = seen_tokens(position_[r] - start, call_.window, T, !raw());
      begin_[r] = static_cast<std::int32_t>(seen.begin), end_[r] = static_cast<std::int32_t>(seen.end);
      any |= seen.begin < seen.end;
    }
    return any;
  }

  // Computes the page that look_at saw.
  void attend(std::int64_t page, float* acc, float* peak, float* mass) const {
    const PartShape& shape = call_.shape;
    const HeadView head = view_head(shape, table_, head_of(page), workspace().head);
    const PageJob job{.q = reinterpret_cast<const float*>(q_),
                      .rows = rows_,
                      .begin = begin_,
                      .end = end_,
                      .keys = head.keys,
                      .values = head.values,
                      .ahead = head_after(page),
                      .head_dim = shape.head_dim,
                      .tokens = shape.tokens,
                      .scale = call_.scale,
                      .scores = scores_,
                      .acc = acc,
                      .peak = peak,
                      .mass = mass};
    shape.narrow ? table_.attend_bf16(job) : table_.attend_fp32(job);
  }

  // What is read after page `page` of the segment.
  const char* head_after(std::int64_t page) const {
    if (page + 1 < segment().page_count) return head_of(page + 1);
    return after_.head != nullptr ? after_.head : head_of(page);
  }

  const std::uint64_t* parts() const { return call_.parts + segment().page_begin; }

  const char* head_of(std::int64_t page) const {
    return reinterpret_cast<const char*>(static_cast<std::uintptr_t>(parts()[page])) + head_bytes();
  }

  // The dtype's rows as float, and room for their spans.
  void lay_rows() {
    const std::int64_t D = call_.shape.head_dim;
    float* target = reinterpret_cast<float*>(q_);
    for (std::int64_t r = 0; r < rows_; ++r, target += D) {
      position_[r] = call_.position[places_[r] / call_.q_heads];
      if (call_.shape.narrow)
        for (std::int64_t d = 0; d < D; ++d) target[d] = widen(static_cast<const bf16*>(call_.q)[places_[r] * D + d]);
      else
        std::memcpy(target, static_cast<const float*>(call_.q) + places_[r] * D, static_cast<std::size_t>(D) * 4);
    }
    begin_ = reinterpret_cast<std::int32_t*>(position_ + rows_);
    end_ = begin_ + rows_;
  }

  void lay_tiles() {
    const std::int64_t D = call_.shape.head_dim, padded = ceil_to(rows_, 16);
    bf16* tiles = reinterpret_cast<bf16*>(q_);
    for (std::int64_t r = 0; r < padded; ++r) {
      if (r < rows_) position_[r] = call_.position[places_[r] / call_.q_heads];
      for (std::int64_t d = 0; d < D; d += 32) {
        bf16* target = tiles + r / 16 * 16 * D + d / 32 * 512 + r % 16 * 32;
        if (r < rows_)
          std::memcpy(target, static_cast<const bf16*>(call_.q) + places_[r] * D + d, 64);
        else
          std::memset(target, 0, 64);
      }
    }
  }

  const AttendCall& call_;
  const Kernels& table_;
  const Tile tile_;
  const Ahead after_;
  const std::int64_t rows_;
  const bool tiled_;
  const std::int64_t* places_ = nullptr;
  char* q_ = nullptr;  // tiles of bf16, or rows of float
  float* scores_ = nullptr;
  float* page_acc_ = nullptr;
  float* page_peak_ = nullptr;
  std::int64_t* position_ = nullptr;
  std::int32_t* begin_ = nullptr;
  std::int32_t* end_ = nullptr;
};

}  // namespace
}  // namespace tokenvm
