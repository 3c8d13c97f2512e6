#include "tokenvm/attention.hpp"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "tokenvm/attention_query.hpp"
#include "tokenvm/team.hpp"

namespace tokenvm {
namespace {

constexpr std::int64_t kTileRows = 192;           // query rows (row, head) of a task that walks the pages
constexpr std::int64_t kFewestTileRows = 48;      // with fewer, pages are brought near for too little work
constexpr std::int64_t kTasksPerThread = 6;       // so that threads finish together
constexpr std::int64_t kFoldRows = 48;            // query rows of a task that folds partial results
constexpr std::int64_t kPartialBytes = 64 << 20;  // most that the partial results of one wave may take

// What bringing one head of a page near costs, against the products and exponentials of sixteen query rows.
constexpr std::int64_t kNearCost = 6;

// Segments no two of which name a row. Each is cut into tiles of rows that walk all its pages, or, where those
// would be too few and too long, into runs of pages, whose partial results are folded when all are there.
class Wave {
 public:
  explicit Wave(const AttendCall& call) : call_(call), table_(kernels()), threads_(team_size()) {
    for (std::int64_t s = 0; s < call.segment_count; ++s)
      total_cost_ += pages_of(s) * call.shape.kv_heads * cost_of(rows_of(s));
    choose_tile_rows();
    for (std::int64_t s = 0; s < call.segment_count; ++s) cut(s);
  }

  void run() {
    thread_local Scratch acc, numbers;
    acc_ = acc.reserve<float>(static_cast<std::size_t>(partial_rows_ * call_.shape.head_dim));
    peak_ = numbers.reserve<float>(static_cast<std::size_t>(2 * partial_rows_));
    mass_ = peak_ + partial_rows_;
    parallel_for(tasks_.size(), [this](std::size_t i) {
      const Task& task = tasks_[i];
      Query query(call_, table_, task.tile, i + 1 < tasks_.size() ? ahead_of(tasks_[i + 1]) : Ahead{});
      if (task.partial < 0)
        query.fold_pages();
      else
        query.write_pages(task.page_begin, task.page_end, partial(task, task.page_begin));
    });
    parallel_for(folds_.size(), [this](std::size_t i) { fold(folds_[i]); });
  }

 private:
  struct Task {
    Tile tile;
    std::int64_t page_begin, page_end;
    std::int64_t partial;  // where the partial results of the tile's segment begin; -1: the tile walks and folds
  };

  std::int64_t pages_of(std::int64_t s) const { return call_.segments[s].page_count; }

  // Query rows of a segment that share a kv head.
  std::int64_t rows_of(std::int64_t s) const {
    return (call_.segments[s].row_end - call_.segments[s].row_begin) * call_.group();
  }

  static std::int64_t cost_of(std::int64_t query_rows) { return kNearCost + (query_rows + 15) / 16; }

  std::int64_t wanted() const { return threads_ == 1 ? 1 : threads_ * kTasksPerThread; }

  std::int64_t step_of(std::int64_t query_rows) const {
    return std::max<std::int64_t>(1, query_rows / call_.group());
  }

  std::int64_t count_tiles() const {
    std::int64_t count = 0;
    for (std::int64_t s = 0; s < call_.segment_count; ++s) {
      const std::int64_t rows = call_.segments[s].row_end - call_.segments[s].row_begin;
      count += (rows + step_of(tile_rows_) - 1) / step_of(tile_rows_) * call_.shape.kv_heads;
    }
    return count;
  }

  void choose_tile_rows() {
    while (count_tiles() < wanted() && tile_rows_ > kFewestTileRows) tile_rows_ /= 2;
  }

  void cut(std::int64_t s) {
    if (rows_of(s) == 0) return;
    const std::int64_t share = total_cost_ / wanted(), cost = cost_of(std::min(rows_of(s), tile_rows_));
    const std::int64_t partials = rows_of(s) * call_.shape.kv_heads * pages_of(s);
    const bool fits = (partial_rows_ + partials) * (call_.shape.head_dim + 2) * 4 <= kPartialBytes;
    if (pages_of(s) * cost > 2 * share && fits)
      cut_pages(s, std::max<std::int64_t>(1, share / 2 / cost_of(rows_of(s))), partials);
    else if (pages_of(s) > 0)
      cut_rows(s, tile_rows_, [&](const Tile& tile) { tasks_.push_back({tile, 0, pages_of(s), -1}); });
  }

  // Partial results lie as [page][kv head][row of the group].
  void cut_pages(std::int64_t s, std::int64_t step, std::int64_t partials) {
    const Segment& segment = call_.segments[s];
    for (std::int64_t page = 0; page < pages_of(s); page += step)
      for (std::int64_t head = 0; head < call_.shape.kv_heads; ++head)
        tasks_.push_back({{s, head, segment.row_begin, segment.row_end},
                          page,
                          std::min<std::int64_t>(page + step, pages_of(s)),
                          partial_rows_});
    cut_rows(s, kFoldRows, [&](const Tile& tile) { folds_.push_back({tile, 0, pages_of(s), partial_rows_}); });
    partial_rows_ += partials;
  }

  template <class Take>
  void cut_rows(std::int64_t s, std::int64_t query_rows, Take take) {
    const std::int64_t step = step_of(query_rows), end = call_.segments[s].row_end;
    for (std::int64_t head = 0; head < call_.shape.kv_heads; ++head)
      for (std::int64_t row = call_.segments[s].row_begin; row < end; row += step)
        take(Tile{s, head, row, std::min<std::int64_t>(row + step, end)});
  }

  // Where the partial results of a tile of some or all rows of its segment begin.
  Partial partial(const Task& task, std::int64_t page) const {
    const std::int64_t rows = rows_of(task.tile.segment), heads = call_.shape.kv_heads;
    const std::int64_t before = (task.tile.row_begin - call_.segments[task.tile.segment].row_begin) * call_.group();
    const std::int64_t at = task.partial + (page * heads + task.tile.kv_head) * rows + before;
    return {acc_ + at * call_.shape.head_dim, peak_ + at, mass_ + at, rows * heads};
  }

  void fold(const Task& task) {
    const std::int64_t* places = places_of(call_, task.tile);
    for (std::int64_t page = task.page_begin; page < task.page_end; ++page) {
      const Partial from = partial(task, page);
      table_.fold({task.tile.rows(call_), call_.shape.head_dim, from.acc, from.peak, from.mass, places,
                   call_.state.acc, call_.state.peak, call_.state.mass});
    }
  }

  // The first page that a task reads, as far as its first row sees it: a hint.
  Ahead ahead_of(const Task& task) const {
    const PartShape& shape = call_.shape;
    const std::int64_t s = task.tile.segment;
    const std::uint64_t part = call_.parts[call_.segments[s].page_begin + task.page_begin];
    const char* head = reinterpret_cast<const char*>(static_cast<std::uintptr_t>(part));
    const std::int64_t start = (call_.first_page[s] + task.page_begin) * shape.tokens;
    const Span seen = seen_tokens(call_.position[task.tile.row_begin] - start, call_.window, shape.tokens,
                                  shape.format != KvFormat::kRaw);
    return {head + task.tile.kv_head * shape.head_bytes(), seen.begin, seen.end};
  }

  const AttendCall& call_;
  const Kernels& table_;
  const std::int64_t threads_;
  std::int64_t total_cost_ = 0, tile_rows_ = kTileRows, partial_rows_ = 0;
  std::vector<Task> tasks_, folds_;
  float* acc_ = nullptr;
  float* peak_ = nullptr;
  float* mass_ = nullptr;
};

// Checks a call and returns where its waves end: runs of segments no two of which name the same row.
std::vector<std::int64_t> waves_of(const AttendCall& call) {
  struct Row {
    std::int64_t wave = -1, next_page = 0;
  };
  std::vector<Row> rows(static_cast<std::size_t>(call.rows));
  std::vector<std::int64_t> ends;
  for (std::int64_t s = 0; s < call.segment_count; ++s) {
    const Segment& segment = call.segments[s];
    if (segment.row_begin < 0 || segment.row_begin > segment.row_end || segment.row_end > call.rows)
      throw std::invalid_argument("a segment names rows that q does not have");
    if (segment.page_begin < 0 || segment.page_count < 0 || call.first_page[s] < 0 ||
        std::int64_t{segment.page_begin} + segment.page_count > call.part_count)
      throw std::invalid_argument("a segment names pages that parts does not have");
    Row* const begin = rows.data() + segment.row_begin;
    Row* const end = rows.data() + segment.row_end;
    const auto wave = static_cast<std::int64_t>(ends.size());
    if (std::any_of(begin, end, [&](const Row& row) { return row.wave == wave; })) ends.push_back(s);
    for (Row* row = begin; row != end; ++row) {
      if (call.first_page[s] < row->next_page)
        throw std::invalid_argument("two segments of one call show a row its pages out of order");
      *row = {static_cast<std::int64_t>(ends.size()), std::int64_t{call.first_page[s]} + segment.page_count};
    }
  }
  for (std::int64_t i = 0; i < call.part_count; ++i)
    if (call.parts[i] == 0) throw std::invalid_argument("a part address is 0");
  ends.push_back(call.segment_count);
  return ends;
}

}  // namespace

void attend(const AttendCall& call) {
  std::int64_t begin = 0;
  for (const std::int64_t end : waves_of(call)) {
    AttendCall wave = call;
    wave.segments += begin, wave.first_page += begin, wave.segment_count = end - begin;
    Wave(wave).run();
    begin = end;
  }
}

}  // namespace tokenvm
