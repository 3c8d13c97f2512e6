#include "tokenvm/io_pool.hpp"

#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>

namespace tokenvm {
namespace {

double now_s() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Signals belong to the threads of the interpreter.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

// A copy's thread runs for a moment and sleeps again, beside compute threads that fill every core. Asking for a short
// slice lets it run as soon as it wakes (Linux 6.12 on; elsewhere it changes nothing).
void ask_for_short_slices() {
  struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
  } wish{};
  wish.size = sizeof wish;
  wish.nice = getpriority(PRIO_PROCESS, 0);
  wish.runtime_ns = 100'000;
  (void)syscall(SYS_sched_setattr, 0, &wish, 0u);
}

Landing landing_of(const Batch& batch) {
  if (batch.unfinished > 0) return Landing::kInFlight;
  return batch.failed ? Landing::kFailed : Landing::kLanded;
}

}  // namespace

// Write-behind never takes every thread: a read always finds one free soon.
IoPool::IoPool(size_t threads, uint64_t read_bytes)
    : read_bytes_(read_bytes),
      urgent_(read_bytes, threads),
      background_(read_bytes, std::max<size_t>(1, threads / 2)) {
  const SignalsBlocked blocked;
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

IoPool::~IoPool() { close(); }

void IoPool::close() {
  {
    const std::lock_guard<std::mutex> held(lock_);
    closed_ = true;
    urgent_.drop_all();
    background_.drop_all();
  }
  work_.notify_all();
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
  done_.notify_all();
}

uint64_t IoPool::submit(std::vector<Copy> copies, bool urgent) {
  auto batch = std::make_shared<Batch>();
  batch->outcomes.resize(copies.size());
  batch->unfinished = copies.size();
  batch->copies = std::move(copies);
  const std::lock_guard<std::mutex> held(lock_);
  if (closed_) throw std::runtime_error("the I/O pool is closed");
  const uint64_t id = next_batch_++;
  batches_.emplace(id, batch);
  if (!batch->copies.empty()) (urgent ? urgent_ : background_).add(std::move(batch));
  work_.notify_one();
  return id;
}

std::shared_ptr<Batch> IoPool::find(uint64_t batch) {
  const auto found = batches_.find(batch);
  if (found == batches_.end()) throw std::out_of_range("no such batch: it was forgotten already");
  return found->second;
}

Landing IoPool::poll(uint64_t batch) {
  const std::lock_guard<std::mutex> held(lock_);
  return landing_of(*find(batch));
}

Landing IoPool::wait(uint64_t batch) {
  std::unique_lock<std::mutex> held(lock_);
  const std::shared_ptr<Batch> found = find(batch);
  background_.move_to(urgent_, found);
  work_.notify_one();
  done_.wait(held, [&] { return found->unfinished == 0; });
  return landing_of(*found);
}

std::vector<Outcome> IoPool::take(uint64_t batch) {
  wait(batch);
  const std::lock_guard<std::mutex> held(lock_);
  return find(batch)->outcomes;
}

void IoPool::forget(uint64_t batch) {
  const std::lock_guard<std::mutex> held(lock_);
  batches_.erase(batch);
}

std::vector<BusyTime::Interval> IoPool::drain_intervals(bool outward) {
  const std::lock_guard<std::mutex> held(lock_);
  return busy_[outward].drain(now_s());
}

std::array<uint64_t, 4> IoPool::moved_bytes() {
  const std::lock_guard<std::mutex> held(lock_);
  return moved_bytes_;
}

void IoPool::attach(WorkSource* ring) {
  const std::lock_guard<std::mutex> held(lock_);
  rings_.push_back(ring);
}

void IoPool::detach(WorkSource* ring) {
  const std::lock_guard<std::mutex> held(lock_);
  std::erase(rings_, ring);
}

WorkSource* IoPool::pick(Run& run) {
  if (closed_) return nullptr;
  if (urgent_.next(run)) return &urgent_;
  for (WorkSource* ring : rings_)
    if (ring->next(run)) return ring;
  return background_.next(run) ? &background_ : nullptr;
}

// Whoever takes a run wakes one more thread, in case there is another: no herd for every credit given back.
void IoPool::carry_out(Run& run, WorkSource* source, std::unique_lock<std::mutex>& held) {
  work_.notify_one();
  BusyTime& busy = busy_[is_outward(run.copies.front().kind)];
  busy.begin(now_s());
  held.unlock();
  run.outcomes.resize(run.copies.size());
  execute(run.copies, run.outcomes, *codec_);
  held.lock();
  busy.end(now_s());
  for (size_t i = 0; i < run.copies.size(); ++i)
    if (run.outcomes[i].status == Status::kLanded)
      moved_bytes_[static_cast<size_t>(run.copies[i].kind)] +=
          run.outcomes[i].packed ? run.copies[i].far_bytes : run.copies[i].nbytes;
  source->finished(run);
  done_.notify_all();
}

void IoPool::work() {
  ask_for_short_slices();
  std::unique_lock<std::mutex> held(lock_);
  while (true) {
    Run run;
    if (WorkSource* source = pick(run)) {
      carry_out(run, source, held);
      continue;
    }
    if (closed_) return;
    work_.wait(held);
  }
}

}  // namespace tokenvm
