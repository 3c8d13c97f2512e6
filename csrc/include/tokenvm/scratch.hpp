// Memory that a thread keeps between calls.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <new>

namespace tokenvm {

// An aligned buffer that only grows. Its contents do not survive a call to `reserve` that grows it. From half a MiB on it
// is asked for in huge pages: small ones lie anywhere in physical memory, so that some drive each other out of the
// second-level cache while there is room in it.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* reserve(std::size_t count) {
    const std::size_t wanted = count * sizeof(T), step = wanted < kHuge / 4 ? 4096 : kHuge;
    if (wanted > capacity_) {
      const std::size_t bytes = (wanted + step - 1) / step * step;
      std::free(data_);
      data_ = std::aligned_alloc(step, bytes);
      capacity_ = data_ == nullptr ? 0 : bytes;
      if (data_ == nullptr) throw std::bad_alloc();
      if (step == kHuge) (void)madvise(data_, bytes, MADV_HUGEPAGE);  // only ever a hint
    }
    return static_cast<T*>(data_);
  }

 private:
  static constexpr std::size_t kHuge = 2 << 20;

  void* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace tokenvm
