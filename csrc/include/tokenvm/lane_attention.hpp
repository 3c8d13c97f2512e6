// Attention of some query rows over one page, and the fold of pages into a state. Include after dot.hpp.
#pragma once

#include "tokenvm/kernels.hpp"

namespace tokenvm {
namespace {

// The tokens that at least one of a block of rows sees; empty if begin >= end.
struct Span {
  std::int64_t begin, end;
};

inline Span visible_span(const PageJob& job, std::int64_t first, std::int64_t rows) {
  Span span{job.tokens, 0};
  for (std::int64_t r = first; r < first + rows; ++r) {
    if (job.begin[r] >= job.end[r]) continue;
    if (job.begin[r] < span.begin) span.begin = job.begin[r];
    if (job.end[r] > span.end) span.end = job.end[r];
  }
  return span;
}

// Turns one row of dots into its weights exp(s - peak), rounded for bf16, over the tokens [first, last)
// (multiples of 16); writes the row's peak and mass. Tokens outside [begin, end) get weight +0.
template <bool Narrow>
inline void softmax_row(const PageJob& job, std::int64_t row, float* scores, std::int64_t first,
                        std::int64_t last) {
  const std::int64_t begin = job.begin[row], end = job.end[row];
  const Lanes scale = broadcast(job.scale);
  Lanes high = broadcast(kMinusInfinity);
  for (std::int64_t t = first; t < last; t += 16) {
    const Lanes s = keep_lanes(mul(load(scores + t), scale), begin - t, end - t, kMinusInfinity);
    store(scores + t, s);
    high = max(s, high);
  }
  job.peak[row] = begin < end ? max_lanes(high) : kMinusInfinity;
  const Lanes peak = broadcast(begin < end ? job.peak[row] : 0.0f);
  Lanes mass = zero_lanes();
  for (std::int64_t t = first; t < last; t += 16) {
    Lanes p = exp_lanes(sub(load(scores + t), peak));
    if (Narrow) p = round_bf16(p);
    store(scores + t, p);
    mass = add(mass, p);
  }
  job.mass[row] = sum_lanes(mass);
}

// Dots of rows with all columns of a part; a head_dim that is no multiple of 16 leaves single columns at the
// end.
template <class Dot>
inline void dot_columns(std::int64_t rows, Rows x, const void* data, const void* ahead, std::int64_t width,
                        std::int64_t k0, std::int64_t k1, Outputs out) {
  constexpr std::int64_t w = Dot::kGranule;
  const auto* base = static_cast<const typename Dot::Weight*>(data);
  const std::int64_t whole = floor_to(out.columns, 16);
  dot<Dot>(rows, x, {base, width * w, 16 * w, ahead}, k0, k1, {out.data, out.stride, whole});
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t n = whole; n < out.columns; ++n)
      out.data[r * out.stride + n] = Dot::one(x.data + r * x.stride, base + n * w, width * w, k0, k1);
}

template <class Dot>
inline void attend_rows(const PageJob& job, std::int64_t first, std::int64_t rows) {
  constexpr bool narrow = Dot::kGranule == 2;
  const Span span = visible_span(job, first, rows);
  if (span.begin >= span.end) {
    for (std::int64_t r = first; r < first + rows; ++r) job.peak[r] = kMinusInfinity, job.mass[r] = 0.0f;
    return;
  }
  const std::int64_t t0 = floor_to(span.begin, 32), t1 = ceil_to(span.end, 16);
  float* scores = job.scores + first * job.tokens;
  const auto* keys = static_cast<const typename Dot::Weight*>(job.keys) + t0 * Dot::kGranule;
  dot_columns<Dot>(rows, {job.q + first * job.head_dim, job.head_dim}, keys, first == 0 ? job.values : keys,
                   job.tokens, 0, job.head_dim, {scores + t0, job.tokens, t1 - t0});
  for (std::int64_t r = 0; r < rows; ++r)
    softmax_row<narrow>(job, first + r, scores + r * job.tokens, t0, t1);
  dot_columns<Dot>(rows, {scores, job.tokens}, job.values, first == 0 ? job.ahead : job.values, job.head_dim,
                   t0, t1, {job.acc + first * job.head_dim, job.head_dim, job.head_dim});
}

template <class Dot>
inline void attend_page(const PageJob& job) {
  for (std::int64_t r = 0; r < job.rows; r += kRowBlock)
    attend_rows<Dot>(job, r, job.rows - r < kRowBlock ? job.rows - r : kRowBlock);
}

// The scalars of up to 16 folds at once: what the old and the new accumulator weigh, and the new peak and
// mass.
inline void fold_scalars(const FoldJob& job, std::int64_t first, std::int64_t rows, float* keep,
                         float* take) {
  float peak[16], mass[16];
  for (std::int64_t r = 0; r < rows; ++r) {
    peak[r] = job.peak[job.place[first + r]];
    mass[r] = job.mass[job.place[first + r]];
  }
  const Lanes old = load_some(peak, rows), page = load_some(job.page_peak + first, rows);
  const Lanes next = max(old, page);
  const Lanes a = exp_lanes(sub(old, next)), b = exp_lanes(sub(page, next));
  store(keep, a);
  store(take, b);
  store(peak, next);
  store(mass, fma(load_some(job.page_mass + first, rows), b, mul(load_some(mass, rows), a)));
  for (std::int64_t r = 0; r < rows; ++r) {
    if (job.page_peak[first + r] == kMinusInfinity) continue;
    job.peak[job.place[first + r]] = peak[r];
    job.mass[job.place[first + r]] = mass[r];
  }
}

inline void fold(const FoldJob& job) {
  for (std::int64_t first = 0; first < job.rows; first += 16) {
    const std::int64_t rows = job.rows - first < 16 ? job.rows - first : 16;
    float keep[16], take[16];
    fold_scalars(job, first, rows, keep, take);
    for (std::int64_t r = 0; r < rows; ++r) {
      if (job.page_peak[first + r] == kMinusInfinity) continue;
      const Lanes a = broadcast(keep[r]), b = broadcast(take[r]);
      float* acc = job.acc + job.place[first + r] * job.head_dim;
      const float* page = job.page_acc + (first + r) * job.head_dim;
      for (std::int64_t d = 0; d < job.head_dim; d += 16) {
        const std::int64_t left = job.head_dim - d;
        store_some(acc + d, fma(load_some(page + d, left), b, mul(load_some(acc + d, left), a)), left);
      }
    }
  }
}

inline void finish(const float* acc, float mass, std::int64_t head_dim, void* out, bool narrow) {
  const Lanes divisor = broadcast(mass > 0.0f ? mass : 1.0f);
  for (std::int64_t d = 0; d < head_dim; d += 16) {
    const Lanes value = add(div(load_some(acc + d, head_dim - d), divisor), zero_lanes());
    store_as(out, d, value, head_dim - d, narrow);
  }
}

}  // namespace
}  // namespace tokenvm
