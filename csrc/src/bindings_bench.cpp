// What this machine could do at best: multiply-adds without loads, and plain reads. Nothing of a model is computed here;
// it is what the kernels are held against.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>

#include "tokenvm/kernels.hpp"
#include "tokenvm/team.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nb = nanobind;

namespace tokenvm {
namespace {

// What one round of an instruction set's loop does: multiplications and additions, each counted.
struct Peak {
  const char* name;
  std::int64_t operations;
  void (*run)(std::int64_t rounds);
};

#if defined(__x86_64__)
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Four accumulators, so that no product waits for the one before it.
__attribute__((target("amx-tile,amx-bf16"))) void tiles(std::int64_t rounds) {
  const TileConfig config;
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
  for (std::int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

#define TOKENVM_TWELVE(step) \
  step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)

// Twelve accumulators cover the latency of two multiply-add units.
__attribute__((target("avx512f"))) void lanes512(std::int64_t rounds) {
  __m512 sum[12] = {}, factor = _mm512_set1_ps(0.5f), addend = _mm512_set1_ps(1.0f);
  for (std::int64_t i = 0; i < rounds; ++i) {
#define TOKENVM_STEP(n) sum[n] = _mm512_fmadd_ps(sum[n], factor, addend);
    TOKENVM_TWELVE(TOKENVM_STEP)
#undef TOKENVM_STEP
    asm volatile("" : "+v"(factor), "+v"(addend));
  }
  for (const __m512& one : sum) asm volatile("" ::"v"(one));
}

__attribute__((target("avx2,fma"))) void lanes256(std::int64_t rounds) {
  __m256 sum[12] = {}, factor = _mm256_set1_ps(0.5f), addend = _mm256_set1_ps(1.0f);
  for (std::int64_t i = 0; i < rounds; ++i) {
#define TOKENVM_STEP(n) sum[n] = _mm256_fmadd_ps(sum[n], factor, addend);
    TOKENVM_TWELVE(TOKENVM_STEP)
#undef TOKENVM_STEP
    asm volatile("" : "+x"(factor), "+x"(addend));
  }
  for (const __m256& one : sum) asm volatile("" ::"x"(one));
}
#endif

void scalars(std::int64_t rounds) {
  float sum[32] = {}, factor = 0.5f, addend = 1.0f;
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+g"(factor), "+g"(addend));
    for (float& one : sum) one = one * factor + addend;
  }
  for (const float& one : sum) asm volatile("" ::"m"(one));
}

// The best there is below the instruction set in use.
Peak peak() {
  const std::string isa = kernels().name;
#if defined(__x86_64__)
  if (isa == "amx") return {"amx tiles, bfloat16", 4 * 2 * 16 * 16 * 32, tiles};
  if (isa == "avx512") return {"avx512 multiply-add, float32", 12 * 2 * 16, lanes512};
  if (isa == "avx2") return {"avx2 multiply-add, float32", 12 * 2 * 8, lanes256};
#endif
  return {"plain multiply-add, float32", 32 * 2, scalars};
}

// Every thread of the team runs `rounds` rounds; returns how many operations that were.
std::int64_t run_peak(std::int64_t rounds) {
  const Peak best = peak();
  const int threads = team_size();
  parallel_for(static_cast<std::size_t>(threads), [&](std::size_t) { best.run(rounds); });
  return best.operations * rounds * threads;
}

// Reads every cache line of a range with the whole team, 256 KiB a task, and returns a value that depends on all of it.
std::uint64_t read_all(std::uintptr_t address, std::size_t bytes) {
  constexpr std::size_t kTask = 256 << 10;
  std::uint64_t total = 0;
  parallel_for((bytes + kTask - 1) / kTask, [&](std::size_t task) {
    const auto* words = reinterpret_cast<const std::uint64_t*>(address + task * kTask);
    const std::size_t count = (bytes - task * kTask < kTask ? bytes - task * kTask : kTask) / 8;
    std::uint64_t lanes[64] = {};
    for (std::size_t i = 0; i + 64 <= count; i += 64) {
      __builtin_prefetch(words + i + 512);
      for (std::size_t lane = 0; lane < 64; lane += 8) lanes[lane] ^= words[i + lane];  // one word of each line
    }
    std::uint64_t sum = 0;
    for (const std::uint64_t lane : lanes) sum ^= lane;
    __atomic_fetch_xor(&total, sum, __ATOMIC_RELAXED);
  });
  return total;
}

}  // namespace
}  // namespace tokenvm

void bind_bench(nb::module_& m) {
  using namespace tokenvm;
  m.def("peak_name", [] { return std::string(peak().name); });
  m.def("run_peak", &run_peak, nb::call_guard<nb::gil_scoped_release>());
  m.def("read_all", &read_all, nb::call_guard<nb::gil_scoped_release>());
}
