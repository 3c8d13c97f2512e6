// Queues of batches and the clock of the pool. Everything here runs with the pool's lock held.
#include <algorithm>

#include "tokenvm/io_pool.hpp"

namespace tokenvm {

namespace {
constexpr size_t kMostIntervals = 65536;
}

void BusyTime::keep(Interval interval) {
  if (intervals_.size() == kMostIntervals) intervals_.pop_front();
  intervals_.push_back(interval);
}

void BusyTime::begin(double now_s) {
  if (in_flight_++ == 0) since_s_ = now_s;
}

void BusyTime::end(double now_s) {
  if (--in_flight_ == 0) keep({since_s_, now_s});
}

std::vector<BusyTime::Interval> BusyTime::drain(double now_s) {
  if (in_flight_ > 0) {
    keep({since_s_, now_s});
    since_s_ = now_s;
  }
  std::vector<Interval> all(intervals_.begin(), intervals_.end());
  intervals_.clear();
  return all;
}

void BatchQueue::add(std::shared_ptr<Batch> batch) { waiting_.push_back({std::move(batch), 0}); }

void BatchQueue::move_to(BatchQueue& other, const std::shared_ptr<Batch>& batch) {
  const auto found = std::find_if(waiting_.begin(), waiting_.end(), [&](const Waiting& w) { return w.batch == batch; });
  if (found == waiting_.end()) return;
  other.waiting_.push_back(std::move(*found));
  waiting_.erase(found);
}

void BatchQueue::drop_all() {
  for (Waiting& waiting : waiting_) {
    Batch& batch = *waiting.batch;
    for (size_t i = waiting.next; i < batch.copies.size(); ++i, --batch.unfinished)
      batch.outcomes[i].status = Status::kDropped;
    batch.failed = true;
  }
  waiting_.clear();
}

bool BatchQueue::next(Run& run) {
  if (waiting_.empty() || running_ == most_running_) return false;
  Waiting& front = waiting_.front();
  const std::vector<Copy>& copies = front.batch->copies;
  run.first = front.next;
  run.owner = front.batch;
  uint64_t nbytes = 0;
  do {
    nbytes += copies[front.next].far_bytes;
    run.copies.push_back(copies[front.next++]);
  } while (front.next < copies.size() && nbytes + copies[front.next].far_bytes <= most_bytes_ &&
           continues(run.copies.back(), copies[front.next]));
  if (front.next == copies.size()) waiting_.pop_front();
  ++running_;
  return true;
}

void BatchQueue::finished(const Run& run) {
  --running_;
  Batch& batch = *std::static_pointer_cast<Batch>(run.owner);
  for (size_t i = 0; i < run.outcomes.size(); ++i) {
    batch.outcomes[run.first + i] = run.outcomes[i];
    batch.failed |= run.outcomes[i].status != Status::kLanded;
  }
  batch.unfinished -= run.outcomes.size();
}

}  // namespace tokenvm
