#include "tokenvm/ring.hpp"

#include <algorithm>
#include <stdexcept>

namespace tokenvm {

namespace {
constexpr size_t kMostFailures = 65536;
}

// A run takes at most an eighth of the ring, two copies where that is less and a quarter holds them, so that several are
// in flight and credits come back before it is dry.
Ring::Ring(IoPool& pool, uint64_t base, uint64_t slots, uint64_t stride)
    : pool_(pool),
      base_(base),
      slots_(slots),
      stride_(stride),
      most_bytes_(pool.read_bytes()),
      most_copies_(std::max<uint64_t>({1, slots / 8, std::min<uint64_t>(2, slots / 4)})),
      arrived_(slots, 0) {
  pool_.attach(this);
}

Ring::~Ring() {
  cancel();
  pool_.detach(this);
}

uint64_t Ring::submit(std::vector<Copy> program) {
  const std::lock_guard<std::mutex> held(pool_.lock());
  if (pool_.closed()) throw std::runtime_error("the I/O pool is closed");
  const uint64_t first = submitted_;
  for (Copy& copy : program) {
    copy.address = base_ + (submitted_++ % slots_) * stride_;
    queue_.push_back(copy);
  }
  pool_.wake_worker();
  return first;
}

Landing Ring::wait(uint64_t end) {
  std::unique_lock<std::mutex> held(pool_.lock());
  if (end > submitted_) throw std::out_of_range("wait for tickets that were never submitted");
  if (end > released_ + slots_) throw std::out_of_range("wait for more tickets than the ring has slots: release first");
  const uint64_t first = released_, cancels = cancels_;
  wanted_ = std::max(wanted_, end);
  if (landed_ < end) {
    pool_.wake_worker();
    pool_.wait_until(held, [&] { return landed_ >= end || cancels_ != cancels || pool_.closed(); });
  }
  if (cancels_ != cancels || landed_ < end) return Landing::kDropped;
  return any_failed(first, end) ? Landing::kFailed : Landing::kLanded;
}

void Ring::release(uint64_t end) {
  const std::lock_guard<std::mutex> held(pool_.lock());
  if (end > landed_) throw std::out_of_range("release of tickets that have not landed: wait first");
  if (end <= released_) return;
  released_ = end;
  if (ready() > 0) pool_.wake_worker();
}

bool Ring::any_failed(uint64_t begin, uint64_t end) const {
  return std::any_of(failures_.begin(), failures_.end(), [&](const Failure& one) { return begin <= one.ticket && one.ticket < end; });
}

std::vector<Ring::Failure> Ring::failed(uint64_t begin, uint64_t end) {
  const std::lock_guard<std::mutex> held(pool_.lock());
  std::vector<Failure> found;
  for (const Failure& one : failures_)
    if (begin <= one.ticket && one.ticket < end) found.push_back(one);
  std::sort(found.begin(), found.end(), [](const Failure& a, const Failure& b) { return a.ticket < b.ticket; });
  return found;
}

void Ring::cancel() {
  std::unique_lock<std::mutex> held(pool_.lock());
  queue_.clear();
  ++cancels_;
  pool_.wait_until(held, [&] { return runs_in_flight_ == 0; });
  released_ = landed_ = started_ = wanted_ = submitted_;
  std::fill(arrived_.begin(), arrived_.end(), 0);
  failures_.clear();
  pool_.wake_waiters();
}

std::array<uint64_t, 4> Ring::marks() {
  const std::lock_guard<std::mutex> held(pool_.lock());
  return {released_, landed_, started_, submitted_};
}

// How many tickets from started_ on make the run that would start if credits were endless.
size_t Ring::longest_run() const {
  uint64_t nbytes = queue_.front().far_bytes;
  size_t count = 1;
  while (count < queue_.size() && count < most_copies_ && nbytes + queue_[count].far_bytes <= most_bytes_ &&
         continues(queue_[count - 1], queue_[count]))
    nbytes += queue_[count++].far_bytes;
  return count;
}

// How many tickets may start now as one run. A run cut short by missing credits would make small reads for ever; it
// starts only when somebody waits for it.
size_t Ring::ready() const {
  const uint64_t credits = released_ + slots_ - started_;
  if (queue_.empty() || credits == 0) return 0;
  const size_t longest = longest_run();
  return longest <= credits ? longest : wanted_ > started_ ? credits : 0;
}

bool Ring::next(Run& run) {
  const size_t count = ready();
  if (count == 0) return false;
  run.first = started_;
  run.copies.assign(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(count));
  queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(count));
  started_ += count;
  ++runs_in_flight_;
  return true;
}

void Ring::finished(const Run& run) {
  --runs_in_flight_;
  for (size_t i = 0; i < run.outcomes.size(); ++i) {
    const uint64_t ticket = run.first + i;
    arrived_[ticket % slots_] = 1;
    if (run.outcomes[i].status != Status::kLanded) failures_.push_back({ticket, run.outcomes[i].status});
  }
  while (failures_.size() > kMostFailures) failures_.pop_front();
  for (; landed_ < started_ && arrived_[landed_ % slots_]; ++landed_) arrived_[landed_ % slots_] = 0;
}

}  // namespace tokenvm
