#include "tokenvm/attention.hpp"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "tokenvm/kernels.hpp"
#include "tokenvm/quantise.hpp"
#include "tokenvm/scratch.hpp"
#include "tokenvm/team.hpp"

namespace tokenvm {
namespace {

constexpr std::int64_t kTileRows = 96;            // query rows (row, head) of a task that walks the pages
constexpr std::int64_t kTasksPerThread = 8;       // so that threads finish together
constexpr std::int64_t kPartialBytes = 64 << 20;  // most that the partial results of one call may take

// Query rows of one kv head: `rows` rows of the batch times the heads of the group, row by row.
struct Tile {
  std::int64_t segment, kv_head, row_begin, row_end;
};

// What a thread keeps between tasks.
struct Workspace {
  Scratch q, tiles, scores, spans, places, page_acc, page_numbers, head;
};

Workspace& workspace() {
  thread_local Workspace space;
  return space;
}

// A tile's queries, laid out for the page kernels, and the spans of the current page that they see.
class Query {
 public:
  Query(const AttendCall& call, const Kernels& table, const Tile& tile)
      : call_(call), table_(table), tile_(tile), rows_((tile.row_end - tile.row_begin) * call.group()) {
    const std::int64_t D = call.shape.head_dim, padded = ceil_to(rows_, 16);
    Workspace& space = workspace();
    q_ = space.q.reserve<float>(static_cast<std::size_t>(padded * D));
    scores_ = space.scores.reserve<float>(static_cast<std::size_t>(padded * call.shape.tokens));
    begin_ = space.spans.reserve<std::int32_t>(static_cast<std::size_t>(2 * padded));
    end_ = begin_ + padded;
    std::fill(begin_, begin_ + 2 * padded, 0);
    places_ = space.places.reserve<std::int64_t>(static_cast<std::size_t>(rows_));
    for (std::int64_t r = 0; r < rows_; ++r) {
      places_[r] =
          (tile.row_begin + r / call.group()) * call.q_heads + tile.kv_head * call.group() + r % call.group();
      copy_row(r);
    }
    if (call.shape.narrow && table.wants_tiles && D % 32 == 0) lay_tiles(padded);
  }

  std::int64_t rows() const { return rows_; }
  // Where each row's (row, head) stands among all of the call.
  const std::int64_t* places() const { return places_; }

  // Sets the visible span of every row in page `page` of the segment; false if no row sees anything.
  bool look_at(std::int64_t page) {
    const std::int64_t T = call_.shape.tokens, group = call_.group();
    const std::int64_t start = (call_.first_page[tile_.segment] + page) * T;
    bool any = false;
    for (std::int64_t row = tile_.row_begin, r = 0; row < tile_.row_end; ++row) {
      const std::int64_t p = call_.position[row];
      const std::int64_t oldest = call_.window > 0 ? p - call_.window + 1 : 0;
      const std::int64_t begin = std::clamp<std::int64_t>(oldest - start, 0, T);
      const std::int64_t end = std::clamp<std::int64_t>(newest_seen(p) + 1 - start, 0, T);
      any |= begin < end;
      for (std::int64_t g = 0; g < group; ++g, ++r)
        begin_[r] = static_cast<std::int32_t>(begin), end_[r] = static_cast<std::int32_t>(end);
    }
    return any;
  }

  // Computes the page that look_at saw.
  void attend(std::int64_t page, float* acc, float* peak, float* mass) const {
    const PartShape& shape = call_.shape;
    const std::int64_t index = call_.segments[tile_.segment].page_begin + page;
    const bool last = page + 1 == call_.segments[tile_.segment].page_count;
    const HeadView head = view_head(shape, table_, head_of(index), workspace().head);
    const PageJob job{.q = q_,
                      .q_tiles = tiles_,
                      .rows = rows_,
                      .begin = begin_,
                      .end = end_,
                      .keys = head.keys,
                      .values = head.values,
                      .ahead = head_of(last ? index : index + 1),
                      .head_dim = shape.head_dim,
                      .tokens = shape.tokens,
                      .scale = call_.scale,
                      .scores = scores_,
                      .acc = acc,
                      .peak = peak,
                      .mass = mass};
    shape.narrow ? table_.attend_bf16(job) : table_.attend_fp32(job);
  }

 private:
  const char* head_of(std::int64_t index) const {
    const char* part = reinterpret_cast<const char*>(static_cast<std::uintptr_t>(call_.parts[index]));
    return part + tile_.kv_head * call_.shape.head_bytes();
  }

  // A quantised page shows itself to rows of later pages alone.
  std::int64_t newest_seen(std::int64_t position) const {
    const std::int64_t T = call_.shape.tokens;
    return call_.shape.format == KvFormat::kRaw ? position : floor_to(position, T) - 1;
  }

  std::int64_t source(std::int64_t r) const { return places_[r] * call_.shape.head_dim; }

  void copy_row(std::int64_t r) {
    const std::int64_t D = call_.shape.head_dim;
    float* target = q_ + r * D;
    if (!call_.shape.narrow) {
      std::memcpy(target, static_cast<const float*>(call_.q) + source(r), static_cast<std::size_t>(D) * 4);
      return;
    }
    const bf16* q = static_cast<const bf16*>(call_.q) + source(r);
    for (std::int64_t d = 0; d < D; ++d) target[d] = widen(q[d]);
  }

  void lay_tiles(std::int64_t padded) {
    const std::int64_t D = call_.shape.head_dim;
    tiles_ = workspace().tiles.reserve<bf16>(static_cast<std::size_t>(padded * D));
    for (std::int64_t r = 0; r < padded; ++r)
      for (std::int64_t d = 0; d < D; d += 32) {
        bf16* target = tiles_ + r / 16 * 16 * D + d / 32 * 512 + r % 16 * 32;
        if (r < rows_)
          std::memcpy(target, static_cast<const bf16*>(call_.q) + source(r) + d, 64);
        else
          std::memset(target, 0, 64);
      }
  }

  const AttendCall& call_;
  const Kernels& table_;
  const Tile tile_;
  const std::int64_t rows_;
  std::int64_t* places_ = nullptr;
  float* q_ = nullptr;
  bf16* tiles_ = nullptr;
  float* scores_ = nullptr;
  std::int32_t* begin_ = nullptr;
  std::int32_t* end_ = nullptr;
};

// One task: a tile walks all its pages in order. Its state lies side by side while it does.
void walk(const AttendCall& call, const Kernels& table, const Tile& tile) {
  Query query(call, table, tile);
  const std::int64_t D = call.shape.head_dim, rows = query.rows();
  Workspace& space = workspace();
  float* page_acc = space.page_acc.reserve<float>(static_cast<std::size_t>(ceil_to(rows, 16) * D));
  float* page_peak = space.page_numbers.reserve<float>(static_cast<std::size_t>(2 * rows));
  float* page_mass = page_peak + rows;
  for (std::int64_t page = 0; page < call.segments[tile.segment].page_count; ++page) {
    if (!query.look_at(page)) continue;
    query.attend(page, page_acc, page_peak, page_mass);
    table.fold({rows, D, page_acc, page_peak, page_mass, query.places(), call.state.acc, call.state.peak,
                call.state.mass});
  }
}

std::vector<Tile> tiles_of(const AttendCall& call, std::int64_t tile_rows) {
  std::vector<Tile> tiles;
  const std::int64_t step = std::max<std::int64_t>(1, tile_rows / call.group());
  for (std::int64_t s = 0; s < call.segment_count; ++s)
    for (std::int64_t head = 0; head < call.shape.kv_heads; ++head)
      for (std::int64_t row = call.segments[s].row_begin; row < call.segments[s].row_end; row += step)
        tiles.push_back({s, head, row, std::min<std::int64_t>(row + step, call.segments[s].row_end)});
  return tiles;
}

// Few rows and many pages: partial results of all pages first, each page a task of its own, then the folds.
class Scatter {
 public:
  explicit Scatter(const AttendCall& call) : call_(call), table_(kernels()) {
    std::int64_t rows = 0;
    for (std::int64_t s = 0; s < call.segment_count; ++s) {
      first_.push_back(rows);
      rows += heads_of(s) * call.segments[s].page_count;
    }
    rows_ = rows;
  }

  std::int64_t bytes() const { return rows_ * (call_.shape.head_dim + 2) * 4; }

  void run() {
    thread_local Scratch acc, numbers;
    acc_ = acc.reserve<float>(static_cast<std::size_t>(rows_ * call_.shape.head_dim));
    peak_ = numbers.reserve<float>(static_cast<std::size_t>(2 * rows_));
    mass_ = peak_ + rows_;
    const std::vector<Run> runs = cut_runs();
    parallel_for(runs.size(), [&](std::size_t task) { attend_run(runs[task]); });
    const std::int64_t kv_heads = call_.shape.kv_heads;
    parallel_for(static_cast<std::size_t>(call_.segment_count * kv_heads), [&](std::size_t task) {
      const std::int64_t t = static_cast<std::int64_t>(task);
      fold_group(t / kv_heads, t % kv_heads);
    });
  }

 private:
  struct Run {
    Tile tile;
    std::int64_t page_begin, page_end;
  };

  // All (row, head) pairs of a segment.
  std::int64_t heads_of(std::int64_t s) const {
    return (call_.segments[s].row_end - call_.segments[s].row_begin) * call_.q_heads;
  }

  // Partial results lie as [segment][page][kv head][row of the group].
  std::int64_t partial(std::int64_t s, std::int64_t page, std::int64_t kv_head) const {
    return first_[static_cast<std::size_t>(s)] + page * heads_of(s) +
           kv_head * (heads_of(s) / call_.shape.kv_heads);
  }

  std::vector<Run> cut_runs() const {
    std::int64_t pages = 0;
    for (std::int64_t s = 0; s < call_.segment_count; ++s)
      pages += call_.segments[s].page_count * call_.shape.kv_heads;
    const std::int64_t step = std::max<std::int64_t>(1, pages / (team_size() * kTasksPerThread));
    std::vector<Run> runs;
    for (std::int64_t s = 0; s < call_.segment_count; ++s)
      for (std::int64_t page = 0; page < call_.segments[s].page_count; page += step)
        for (std::int64_t head = 0; head < call_.shape.kv_heads; ++head)
          runs.push_back({{s, head, call_.segments[s].row_begin, call_.segments[s].row_end},
                          page,
                          std::min<std::int64_t>(page + step, call_.segments[s].page_count)});
    return runs;
  }

  void attend_run(const Run& run) {
    Query query(call_, table_, run.tile);
    for (std::int64_t page = run.page_begin; page < run.page_end; ++page) {
      const std::int64_t at = partial(run.tile.segment, page, run.tile.kv_head);
      if (query.look_at(page))
        query.attend(page, acc_ + at * call_.shape.head_dim, peak_ + at, mass_ + at);
      else
        std::fill(peak_ + at, peak_ + at + query.rows(), -__builtin_inff());
    }
  }

  void fold_group(std::int64_t s, std::int64_t kv_head) {
    const Segment& segment = call_.segments[s];
    const Query query(call_, table_, {s, kv_head, segment.row_begin, segment.row_end});
    for (std::int64_t page = 0; page < segment.page_count; ++page) {
      const std::int64_t from = partial(s, page, kv_head), D = call_.shape.head_dim;
      table_.fold({query.rows(), D, acc_ + from * D, peak_ + from, mass_ + from, query.places(),
                   call_.state.acc, call_.state.peak, call_.state.mass});
    }
  }

  const AttendCall& call_;
  const Kernels& table_;
  std::vector<std::int64_t> first_;
  std::int64_t rows_ = 0;
  float* acc_ = nullptr;
  float* peak_ = nullptr;
  float* mass_ = nullptr;
};

void check(const AttendCall& call) {
  std::vector<bool> named(static_cast<std::size_t>(call.rows));
  for (std::int64_t s = 0; s < call.segment_count; ++s) {
    const Segment& segment = call.segments[s];
    if (segment.row_begin < 0 || segment.row_begin > segment.row_end || segment.row_end > call.rows)
      throw std::invalid_argument("a segment names rows that q does not have");
    if (segment.page_begin < 0 || segment.page_count < 0 || call.first_page[s] < 0 ||
        std::int64_t{segment.page_begin} + segment.page_count > call.part_count)
      throw std::invalid_argument("a segment names pages that parts does not have");
    for (std::int64_t row = segment.row_begin; row < segment.row_end; ++row) {
      if (named[static_cast<std::size_t>(row)])
        throw std::invalid_argument("two segments of one call name a row");
      named[static_cast<std::size_t>(row)] = true;
    }
  }
  for (std::int64_t i = 0; i < call.part_count; ++i)
    if (call.parts[i] == 0) throw std::invalid_argument("a part address is 0");
}

}  // namespace

void attend(const AttendCall& call) {
  check(call);
  const std::int64_t wanted = team_size() == 1 ? 1 : team_size() * kTasksPerThread;
  std::vector<Tile> tiles = tiles_of(call, kTileRows);
  if (static_cast<std::int64_t>(tiles.size()) < wanted) {
    Scatter scatter(call);
    if (scatter.bytes() <= kPartialBytes) return scatter.run();
    tiles = tiles_of(call, kTileRows / 6);
  }
  const Kernels& table = kernels();
  parallel_for(tiles.size(), [&](std::size_t task) { walk(call, table, tiles[task]); });
}

}  // namespace tokenvm
