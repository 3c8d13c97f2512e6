// Attention of some query rows over one page, and the fold of pages into a state. Include after dot.hpp.
#pragma once

#include "tokenvm/kernels.hpp"

namespace tokenvm {
namespace {

// The tokens that at least one of a block of rows sees.
inline Span visible_span(const PageJob& job, std::int64_t first, std::int64_t rows) {
  Span span{job.tokens, 0};
  for (std::int64_t r = first; r < first + rows; ++r) {
    if (job.begin[r] >= job.end[r]) continue;
    if (job.begin[r] < span.begin) span.begin = job.begin[r];
    if (job.end[r] > span.end) span.end = job.end[r];
  }
  return span;
}

// Turns one row of dots into its weights exp(s - peak) over the tokens [first, last) (multiples of 16); writes
// the row's peak and mass. Tokens outside [begin, end) get weight +0. fp32 parts.
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
    const Lanes p = exp_lanes(sub(load(scores + t), peak));
    store(scores + t, p);
    mass = add(mass, p);
  }
  job.mass[row] = sum_lanes(mass);
}

// The same for bf16 parts: the weights are powers of two of s log2(e) - peak log2(e), one multiply-add from
// the dots, and rounded; the mass is of the weights before rounding, 16 even and 16 odd groups of lanes.
inline void softmax_row_bf16(const PageJob& job, std::int64_t row, float* scores, std::int64_t first,
                             std::int64_t last) {
  const std::int64_t begin = job.begin[row], end = job.end[row];
  Lanes high = broadcast(kMinusInfinity);
  for (std::int64_t t = first; t < last; t += 16)
    high = max(keep_lanes(load(scores + t), begin - t, end - t, kMinusInfinity), high);
  job.peak[row] = begin < end ? max_lanes(high) * job.scale : kMinusInfinity;
  const Lanes factor = broadcast(job.scale * kLog2E);
  const Lanes offset = broadcast(begin < end ? -(job.peak[row] * kLog2E) : 0.0f);
  Lanes mass[2] = {zero_lanes(), zero_lanes()};
  for (std::int64_t t = first; t < last; t += 16) {
    const Lanes p = keep_lanes(exp2_lanes(fma(load(scores + t), factor, offset)), begin - t, end - t, 0.0f);
    store(scores + t, round_bf16(p));
    mass[t / 16 % 2] = add(mass[t / 16 % 2], p);
  }
  job.mass[row] = sum_lanes(add(mass[0], mass[1]));
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
  for (std::int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * job.tokens;
    narrow ? softmax_row_bf16(job, first + r, row, t0, t1) : softmax_row(job, first + r, row, t0, t1);
  }
  dot_columns<Dot>(rows, {scores, job.tokens}, job.values, first == 0 ? job.ahead : job.values, job.head_dim,
                   t0, t1, {job.acc + first * job.head_dim, job.head_dim, job.head_dim});
}

template <class Dot>
inline void attend_page(const PageJob& job) {
  for (std::int64_t r = 0; r < job.rows; r += kRowBlock)
    attend_rows<Dot>(job, r, job.rows - r < kRowBlock ? job.rows - r : kRowBlock);
}

// The scalars of up to 16 folds at once: what the old and the new accumulator weigh; peak and mass become the
// new ones.
inline void fold_scalars(std::int64_t rows, const float* page_peak, const float* page_mass, float* peak,
                         float* mass, float* keep, float* take) {
  const Lanes old = load_some(peak, rows), page = load_some(page_peak, rows), next = max(old, page);
  const Lanes a = exp_lanes(sub(old, next)), b = exp_lanes(sub(page, next));
  store(keep, a);
  store(take, b);
  float new_peak[16], new_mass[16];
  store(new_peak, next);
  store(new_mass, fma(load_some(page_mass, rows), b, mul(load_some(mass, rows), a)));
  for (std::int64_t r = 0; r < rows; ++r) {
    if (page_peak[r] == kMinusInfinity) continue;
    peak[r] = new_peak[r];
    mass[r] = new_mass[r];
  }
}

inline void fold_row(std::int64_t head_dim, const float* page, float take, float keep, float* acc) {
  const Lanes a = broadcast(keep), b = broadcast(take);
  for (std::int64_t d = 0; d < head_dim; d += 16) {
    const std::int64_t left = head_dim - d;
    store_some(acc + d, fma(load_some(page + d, left), b, mul(load_some(acc + d, left), a)), left);
  }
}

// Up to 16 rows whose states lie side by side.
inline void fold_rows(std::int64_t rows, std::int64_t head_dim, const float* page_acc, const float* page_peak,
                      const float* page_mass, float* acc, float* peak, float* mass) {
  float keep[16], take[16];
  fold_scalars(rows, page_peak, page_mass, peak, mass, keep, take);
  for (std::int64_t r = 0; r < rows; ++r)
    if (page_peak[r] != kMinusInfinity)
      fold_row(head_dim, page_acc + r * head_dim, take[r], keep[r], acc + r * head_dim);
}

inline void fold(const FoldJob& job) {
  for (std::int64_t first = 0; first < job.rows; first += 16) {
    const std::int64_t rows = job.rows - first < 16 ? job.rows - first : 16;
    float peak[16], mass[16], keep[16], take[16];
    for (std::int64_t r = 0; r < rows; ++r) {
      peak[r] = job.peak[job.place[first + r]];
      mass[r] = job.mass[job.place[first + r]];
    }
    fold_scalars(rows, job.page_peak + first, job.page_mass + first, peak, mass, keep, take);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t place = job.place[first + r];
      if (job.page_peak[first + r] == kMinusInfinity) continue;
      job.peak[place] = peak[r];
      job.mass[place] = mass[r];
      fold_row(job.head_dim, job.page_acc + (first + r) * job.head_dim, take[r], keep[r],
               job.acc + place * job.head_dim);
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
