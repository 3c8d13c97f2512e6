// The thread team: persistent workers that share the tasks of one kernel call.
#pragma once

#include <cstddef>
#include <type_traits>

namespace tokenvm {

using TaskFunction = void (*)(void* context, std::size_t task);

// Runs fn(context, 0..tasks-1), each once, on the caller and the workers; returns when all are done. The
// order and the thread of a task are unspecified: a task must own every element it writes. A call while
// another one is running (from another thread) runs all its tasks on its caller. Tasks must not throw.
void run_tasks(std::size_t tasks, TaskFunction fn, void* context);

// Number of threads that share a call, the caller included. Starts as the number of CPUs this process may
// use.
int team_size();

// Sets the number of threads (at least 1). Joins surplus workers; must not be called from inside a task.
void resize_team(int threads);

template <class Function>
void parallel_for(std::size_t tasks, Function&& function) {
  run_tasks(
      tasks,
      [](void* context, std::size_t task) {
        (*static_cast<std::remove_reference_t<Function>*>(context))(task);
      },
      &function);
}

}  // namespace tokenvm
