#include "tokenvm/attention.hpp"

#include <stdexcept>
#include <vector>

#include "tokenvm/attention_query.hpp"
#include "tokenvm/team.hpp"

namespace tokenvm {
namespace {

constexpr std::int64_t kTileRows = 192;           // query rows (row, head) of a task that walks the pages
constexpr std::int64_t kFewestTileRows = 48;      // with fewer, pages are brought near for too little work
constexpr std::int64_t kTasksPerThread = 8;       // so that threads finish together
constexpr std::int64_t kPartialBytes = 64 << 20;  // most that the partial results of one call may take

std::vector<Tile> tiles_of(const AttendCall& call, std::int64_t tile_rows) {
  std::vector<Tile> tiles;
  const std::int64_t step = std::max<std::int64_t>(1, tile_rows / call.group());
  for (std::int64_t s = 0; s < call.segment_count; ++s)
    for (std::int64_t head = 0; head < call.shape.kv_heads; ++head)
      for (std::int64_t row = call.segments[s].row_begin; row < call.segments[s].row_end; row += step)
        tiles.push_back({s, head, row, std::min<std::int64_t>(row + step, call.segments[s].row_end)});
  return tiles;
}

// Few rows and many pages: partial results of all pages first, runs of pages as tasks, then the folds.
class Scatter {
 public:
  explicit Scatter(const AttendCall& call) : call_(call), table_(kernels()) {
    for (std::int64_t s = 0; s < call.segment_count; ++s) {
      first_.push_back(rows_);
      rows_ += heads_of(s) * call.segments[s].page_count;
    }
  }

  std::int64_t bytes() const { return rows_ * (call_.shape.head_dim + 2) * 4; }

  void run() {
    thread_local Scratch acc, numbers;
    acc_ = acc.reserve<float>(static_cast<std::size_t>(rows_ * call_.shape.head_dim));
    peak_ = numbers.reserve<float>(static_cast<std::size_t>(2 * rows_));
    mass_ = peak_ + rows_;
    const std::vector<Run> runs = cut_runs();
    parallel_for(runs.size(), [&](std::size_t task) {
      const Run& run = runs[task];
      Query(call_, table_, run.tile).write_pages(run.page_begin, run.page_end, partial(run.tile, run.page_begin));
    });
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
  Partial partial(const Tile& tile, std::int64_t page) const {
    const std::int64_t stride = heads_of(tile.segment);
    const std::int64_t at = first_[static_cast<std::size_t>(tile.segment)] + page * stride +
                            tile.kv_head * (stride / call_.shape.kv_heads);
    return {acc_ + at * call_.shape.head_dim, peak_ + at, mass_ + at, stride};
  }

  Tile whole_tile(std::int64_t s, std::int64_t kv_head) const {
    return {s, kv_head, call_.segments[s].row_begin, call_.segments[s].row_end};
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
          runs.push_back(
              {whole_tile(s, head), page, std::min<std::int64_t>(page + step, call_.segments[s].page_count)});
    return runs;
  }

  void fold_group(std::int64_t s, std::int64_t kv_head) {
    const Tile tile = whole_tile(s, kv_head);
    const std::int64_t* places = places_of(call_, tile);
    for (std::int64_t page = 0; page < call_.segments[s].page_count; ++page) {
      const Partial from = partial(tile, page);
      table_.fold({tile.rows(call_), call_.shape.head_dim, from.acc, from.peak, from.mass, places, call_.state.acc,
                   call_.state.peak, call_.state.mass});
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
  std::int64_t tile_rows = kTileRows;
  std::vector<Tile> tiles = tiles_of(call, tile_rows);
  while (static_cast<std::int64_t>(tiles.size()) < wanted && tile_rows > kFewestTileRows)
    tiles = tiles_of(call, tile_rows /= 2);
  if (static_cast<std::int64_t>(tiles.size()) < wanted) {
    Scatter scatter(call);
    if (scatter.bytes() <= kPartialBytes) return scatter.run();
    tiles = tiles_of(call, kFewestTileRows / 3);
  }
  const Kernels& table = kernels();
  parallel_for(tiles.size(), [&](std::size_t task) { Query(call, table, tiles[task]).fold_pages(); });
}

}  // namespace tokenvm
