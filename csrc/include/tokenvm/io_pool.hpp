// Native I/O threads. Work comes from sources in order of urgency: batches somebody waits for, rings, write-behind.
#pragma once
#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tokenvm/io_copy.hpp"

namespace tokenvm {

// A piece of work for one thread: copies that continue one another.
struct Run {
  std::vector<Copy> copies;
  std::vector<Outcome> outcomes;
  uint64_t first = 0;           // the source's own number of the first copy
  std::shared_ptr<void> owner;  // whatever the source wants kept alive
};

// Where threads take runs from. Both calls are made with the pool's lock held, and must not block.
class WorkSource {
 public:
  virtual ~WorkSource() = default;
  virtual bool next(Run& run) = 0;             // false: nothing may start now
  virtual void finished(const Run& run) = 0;
};

// The union of the times in which at least one copy was in flight. Not thread-safe: the pool's lock guards it.
class BusyTime {
 public:
  using Interval = std::pair<double, double>;  // CLOCK_MONOTONIC seconds
  void begin(double now_s);
  void end(double now_s);
  // Everything since the last call, oldest first; an interval still open is cut at `now_s`. At most the last 65,536.
  std::vector<Interval> drain(double now_s);

 private:
  void keep(Interval interval);
  std::deque<Interval> intervals_;
  uint64_t in_flight_ = 0;
  double since_s_ = 0;
};

struct Batch {
  std::vector<Copy> copies;
  std::vector<Outcome> outcomes;
  uint64_t unfinished = 0;
  bool failed = false;
};

// Batches in the order they came. A source for the pool, guarded by its lock.
class BatchQueue : public WorkSource {
 public:
  BatchQueue(uint64_t most_bytes, size_t most_running) : most_bytes_(most_bytes), most_running_(most_running) {}
  void add(std::shared_ptr<Batch> batch);
  void move_to(BatchQueue& other, const std::shared_ptr<Batch>& batch);  // what has not started
  void drop_all();                                                      // outcomes become kDropped
  bool next(Run& run) override;
  void finished(const Run& run) override;

 private:
  struct Waiting {
    std::shared_ptr<Batch> batch;
    size_t next;  // first copy that has not started
  };
  std::deque<Waiting> waiting_;
  uint64_t most_bytes_;
  size_t most_running_;
  size_t running_ = 0;
};

enum class Landing : uint8_t { kInFlight = 0, kLanded = 1, kFailed = 2, kDropped = 3 };

// Belongs to the process that made it: in a forked child call nothing, not even the destructor.
class IoPool {
 public:
  // `read_bytes`: the longest run made from adjacent copies; one longer copy is one run.
  IoPool(size_t threads, uint64_t read_bytes);
  ~IoPool();
  IoPool(const IoPool&) = delete;
  IoPool& operator=(const IoPool&) = delete;

  // For copies that are packed; until then it is bitpack. Not while any is in flight.
  void use(std::unique_ptr<const Codec> codec) { codec_ = std::move(codec); }

  // The caller keeps all addresses and files valid and leaves destinations alone until the batch has landed.
  uint64_t submit(std::vector<Copy> copies, bool urgent);
  Landing poll(uint64_t batch);
  Landing wait(uint64_t batch);                // makes the batch urgent
  std::vector<Outcome> take(uint64_t batch);  // waits; answers again until the batch is forgotten
  void forget(uint64_t batch);                 // frees the outcomes, not the copies; idempotent
  void close();                                // drops what has not started, waits for the rest; idempotent

  std::vector<BusyTime::Interval> drain_intervals(bool outward);
  std::array<uint64_t, 4> moved_bytes();  // landed bytes by Kind

  // For rings. A source is detached only when none of its runs is in flight.
  std::mutex& lock() { return lock_; }
  void attach(WorkSource* ring);
  void detach(WorkSource* ring);
  void wake_worker() { work_.notify_one(); }
  void wake_waiters() { done_.notify_all(); }
  template <class Predicate>
  void wait_until(std::unique_lock<std::mutex>& held, Predicate predicate) {
    done_.wait(held, predicate);
  }
  bool closed() const { return closed_; }  // with the lock held
  uint64_t read_bytes() const { return read_bytes_; }

 private:
  void work();
  WorkSource* pick(Run& run);
  void carry_out(Run& run, WorkSource* source, std::unique_lock<std::mutex>& held);
  std::shared_ptr<Batch> find(uint64_t batch);

  const uint64_t read_bytes_;
  std::unique_ptr<const Codec> codec_ = std::make_unique<BitpackCodec>();
  std::mutex lock_;
  std::condition_variable work_, done_;
  BatchQueue urgent_, background_;
  std::vector<WorkSource*> rings_;
  std::unordered_map<uint64_t, std::shared_ptr<Batch>> batches_;
  uint64_t next_batch_ = 1;
  BusyTime busy_[2];
  std::array<uint64_t, 4> moved_bytes_{};
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace tokenvm
