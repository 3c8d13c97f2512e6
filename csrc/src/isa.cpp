#include <atomic>

#include "tokenvm/kernels.hpp"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tokenvm {
namespace {

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi");
}

// CPUID leaf 7: EDX bit 22 is AMX-BF16, bit 24 AMX-TILE. Linux hands the tile registers to a process that
// asks.
bool has_amx() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d >> 22 & 1u) == 0 || (d >> 24 & 1u) == 0) return false;
  if (!has_avx512() || !__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi2"))
    return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<const Kernels*> find_kernels() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  if (has_amx()) found.push_back(&amx_kernels());
  if (has_avx512()) found.push_back(&avx512_kernels());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi")) found.push_back(&avx2_kernels());
#endif
  found.push_back(&portable_kernels());
  return found;
}

const std::vector<const Kernels*>& available() {
  static const std::vector<const Kernels*> found = find_kernels();
  return found;
}

std::atomic<const Kernels*>& active() {
  static std::atomic<const Kernels*> table{available().front()};
  return table;
}

}  // namespace

const Kernels& kernels() { return *active().load(std::memory_order_acquire); }

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Kernels* table : available()) names.emplace_back(table->name);
  return names;
}

bool select_kernels(const std::string& name) {
  for (const Kernels* table : available()) {
    if (name != table->name) continue;
    active().store(table, std::memory_order_release);
    return true;
  }
  return false;
}

}  // namespace tokenvm
