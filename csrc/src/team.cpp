#include "tokenvm/team.hpp"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "tokenvm/numerics.hpp"

namespace tokenvm {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `word` differs from `old`: some 200 microseconds of spinning, then asleep on the futex.
inline void wait_while(const std::atomic<int>& word, int old) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
  do {
    for (int i = 0; i < 32; ++i) {
      if (word.load(std::memory_order_acquire) != old) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < give_up);
  word.wait(old, std::memory_order_acquire);
}

int usable_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  return 1;
}

// One job at a time. Its tasks are cut into as many ranges as there are threads; a thread takes the tasks of its
// own range in order, then helps with the others'. So from call to call the same thread meets the same rows, and
// memory is read in long stretches; and a thread that is held up delays nobody. `left` of a range is its claim
// counter: a thread owns task `end - r` once it has lowered the counter from r to r - 1, and only then reads the
// job's fields, which the caller may not change before that task is done. So a worker that wakes late never
// delays the caller and never sees a stale job.
class Team {
 public:
  explicit Team(int threads) : size_(threads), ranges_(static_cast<std::size_t>(threads)) {}
  ~Team() { stop(); }

  int size() const { return size_.load(std::memory_order_relaxed); }

  void resize(int threads) {
    const std::lock_guard<std::mutex> lock(busy_);
    stop();
    size_ = threads;
    ranges_ = std::vector<Range>(static_cast<std::size_t>(threads));
  }

  void run(std::size_t tasks, TaskFunction fn, void* context) {
    std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
    if (tasks <= 1 || size() == 1 || !lock.try_lock()) {
      const FlushScope flush;
      for (std::size_t task = 0; task < tasks; ++task) fn(context, task);
      return;
    }
    start();
    fn_ = fn, context_ = context, tasks_ = static_cast<std::int64_t>(tasks);
    done_.store(0, std::memory_order_relaxed);
    for (std::size_t i = 0; i < ranges_.size(); ++i)
      ranges_[i].left.store(end_of(i) - (i == 0 ? 0 : end_of(i - 1)), std::memory_order_release);
    signal_.fetch_add(1, std::memory_order_release);
    signal_.notify_all();
    drain(0);
    for (int seen; (seen = done_.load(std::memory_order_acquire)) != static_cast<int>(tasks);)
      wait_while(done_, seen);
  }

 private:
  void start() {
    while (static_cast<int>(workers_.size()) < size() - 1)
      workers_.emplace_back([this, own = workers_.size() + 1] { work(own); });
  }

  void stop() {
    stopping_.store(true, std::memory_order_release);
    signal_.fetch_add(1, std::memory_order_release);
    signal_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_.store(false, std::memory_order_release);
  }

  void work(std::size_t own) {
    while (true) {
      const int seen = signal_.load(std::memory_order_acquire);
      if (stopping_.load(std::memory_order_acquire)) return;
      drain(own);
      wait_while(signal_, seen);
    }
  }

  // The task after the last one of a range.
  std::int64_t end_of(std::size_t range) const {
    return tasks_ * static_cast<std::int64_t>(range + 1) / static_cast<std::int64_t>(ranges_.size());
  }

  void drain(std::size_t own) {
    const FlushScope flush;
    for (std::size_t i = 0; i < ranges_.size(); ++i) drain_range((own + i) % ranges_.size());
  }

  void drain_range(std::size_t range) {
    std::atomic<std::int64_t>& left = ranges_[range].left;
    int finished = 0;
    std::int64_t seen = left.load(std::memory_order_acquire);
    while (seen > 0) {
      if (!left.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel)) continue;
      fn_(context_, static_cast<std::size_t>(end_of(range) - seen));
      ++finished;
      seen = left.load(std::memory_order_acquire);
    }
    if (finished == 0) return;
    const int tasks = static_cast<int>(tasks_);
    if (done_.fetch_add(finished, std::memory_order_acq_rel) + finished == tasks) done_.notify_all();
  }

  struct alignas(64) Range {
    std::atomic<std::int64_t> left{0};
  };

  std::mutex busy_;
  std::atomic<int> size_;
  std::vector<std::thread> workers_;
  TaskFunction fn_ = nullptr;
  void* context_ = nullptr;
  std::int64_t tasks_ = 0;
  std::vector<Range> ranges_;
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> signal_{0};
  std::atomic<bool> stopping_{false};
};

// The process's team. A forked child has none of its parent's threads: it forgets the old team (which cannot
// be destroyed without them) and starts its own at the first call.
struct Home {
  std::unique_ptr<Team> team = std::make_unique<Team>(usable_cpus());

  Home() {
    pthread_atfork(nullptr, nullptr, [] { forget(); });
  }

  static Home& get() {
    static Home home;
    return home;
  }

  static void forget() {
    Home& home = get();
    const int threads = home.team->size();
    (void)home.team.release();
    home.team = std::make_unique<Team>(threads);
  }
};

}  // namespace

void run_tasks(std::size_t tasks, TaskFunction fn, void* context) {
  Home::get().team->run(tasks, fn, context);
}

int team_size() { return Home::get().team->size(); }

void resize_team(int threads) { Home::get().team->resize(threads); }

}  // namespace tokenvm
