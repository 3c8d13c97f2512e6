// Kernels as the table names them. Include after one of lanes_*.hpp.
#pragma once

namespace tokenvm {
namespace {

template <auto Kernel>
struct Entry;

// Calls the kernel and leaves the vector registers as code for any CPU wants to find them: where their upper halves are
// in use, each change between the two ways of encoding costs a hundred cycles and more, and GCC 12 forgets to clear
// them in functions that hand vectors to others.
template <class Result, class... Arguments, Result (*Kernel)(Arguments...)>
struct Entry<Kernel> {
  static Result call(Arguments... arguments) {
    struct Clear {
      ~Clear() { clear_lanes(); }
    } at_the_end;
    return Kernel(arguments...);
  }
};

template <auto Kernel>
inline constexpr auto entry = &Entry<Kernel>::call;

}  // namespace
}  // namespace tokenvm
