// Paged attention: page by page, folded in position order.
#pragma once

#include <cstdint>

#include "tokenvm/paging.hpp"

namespace tokenvm {

// The running state of every row and head: [rows][q_heads][head_dim] and [rows][q_heads].
struct StateView {
  float* acc;
  float* peak;
  float* mass;
};

// Rows [row_begin, row_end) against the parts [page_begin, page_begin + page_count). Rows may be of several sequences
// that share these pages: what a row sees follows from its own position.
struct Segment {
  std::int32_t row_begin, row_end, page_begin, page_count;
};

struct AttendCall {
  StateView state;
  const void* q;  // [rows][q_heads][head_dim] of the part's dtype
  const std::int64_t* position;
  std::int64_t rows, q_heads;
  PartShape shape;
  const Segment* segments;
  const std::int32_t* first_page;  // index in its sequences of each segment's first page
  std::int64_t segment_count;
  const std::uint64_t* parts;
  std::int64_t part_count;
  float scale;
  std::int64_t window;  // 0: none

  std::int64_t group() const { return q_heads / shape.kv_heads; }
};

// Folds the pages of every segment into the state, each row's in the order of the segments. Token t is visible to a
// row at position p iff t <= p and, with a window, t > p - window; a quantised part shows itself only to rows of later
// pages. Throws std::invalid_argument on ranges outside the arrays, or where a row's pages do not ascend.
void attend(const AttendCall& call);

}  // namespace tokenvm
