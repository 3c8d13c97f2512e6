// Memory that a thread keeps between calls.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace tokenvm {

// A 64-byte aligned buffer that only grows. Its contents do not survive a call to `reserve` that grows it.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* reserve(std::size_t count) {
    const std::size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096;
    if (bytes > capacity_) {
      std::free(data_);
      data_ = std::aligned_alloc(4096, bytes);
      capacity_ = data_ == nullptr ? 0 : bytes;
      if (data_ == nullptr) throw std::bad_alloc();
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace tokenvm
