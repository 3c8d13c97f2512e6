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

// One job at a time. `remaining_` is the claim counter: a thread owns task `tasks_ - r` once it has lowered
// the counter from r to r - 1, and only then reads the job's fields, which the caller may not change before
// that task is done. So a worker that wakes late never delays the caller and never sees a stale job.
class Team {
 public:
  explicit Team(int threads) : size_(threads) {}
  ~Team() { stop(); }

  int size() const { return size_.load(std::memory_order_relaxed); }

  void resize(int threads) {
    const std::lock_guard<std::mutex> lock(busy_);
    stop();
    size_ = threads;
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
    remaining_.store(tasks_, std::memory_order_release);
    signal_.fetch_add(1, std::memory_order_release);
    signal_.notify_all();
    drain();
    for (int seen; (seen = done_.load(std::memory_order_acquire)) != static_cast<int>(tasks);)
      wait_while(done_, seen);
  }

 private:
  void start() {
    while (static_cast<int>(workers_.size()) < size() - 1) workers_.emplace_back([this] { work(); });
  }

  void stop() {
    stopping_.store(true, std::memory_order_release);
    signal_.fetch_add(1, std::memory_order_release);
    signal_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_.store(false, std::memory_order_release);
  }

  void work() {
    while (true) {
      const int seen = signal_.load(std::memory_order_acquire);
      if (stopping_.load(std::memory_order_acquire)) return;
      drain();
      wait_while(signal_, seen);
    }
  }

  void drain() {
    const FlushScope flush;
    std::int64_t left = remaining_.load(std::memory_order_acquire);
    while (left > 0) {
      if (!remaining_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) continue;
      const int tasks = static_cast<int>(tasks_);
      fn_(context_, static_cast<std::size_t>(tasks_ - left));
      if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks) done_.notify_all();
      left = remaining_.load(std::memory_order_acquire);
    }
  }

  std::mutex busy_;
  std::atomic<int> size_;
  std::vector<std::thread> workers_;
  TaskFunction fn_ = nullptr;
  void* context_ = nullptr;
  std::int64_t tasks_ = 0;
  alignas(64) std::atomic<std::int64_t> remaining_{0};
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
