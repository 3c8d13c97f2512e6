// Half bytes, the lower one of a byte first, in a buffer that is never left.
#pragma once

#include <cstdint>

namespace tokenvm {
namespace {

class NibbleWriter {
 public:
  NibbleWriter(std::uint8_t* begin, std::uint64_t room) : begin_(begin), room_(2 * room) {}
  void put(unsigned nibble) {
    if (count_ < room_) {
      std::uint8_t& byte = begin_[count_ / 2];
      byte = static_cast<std::uint8_t>(count_ % 2 ? byte | nibble << 4 : nibble);
    }
    ++count_;
  }
  bool overflowed() const { return count_ > room_; }
  std::uint64_t nbytes() const { return (count_ + 1) / 2; }

 private:
  std::uint8_t* begin_;
  std::uint64_t room_, count_ = 0;
};

// Past the end it gives zeros.
class NibbleReader {
 public:
  NibbleReader(const std::uint8_t* begin, std::uint64_t room) : begin_(begin), room_(2 * room) {}
  unsigned next() {
    if (count_ >= room_) return overrun_ = true, 0;
    const unsigned byte = begin_[count_ / 2];
    return count_++ % 2 ? byte >> 4 : byte & 15;
  }
  bool overrun() const { return overrun_; }
  std::uint64_t left() const { return room_ - count_; }
  // Where the next nibble is, and whether it is the upper half there.
  const std::uint8_t* byte() const { return begin_ + count_ / 2; }
  bool upper() const { return count_ % 2 != 0; }
  void skip(std::uint64_t count) { count_ += count; }  // not more than are left

 private:
  const std::uint8_t* begin_;
  std::uint64_t room_, count_ = 0;
  bool overrun_ = false;
};

}  // namespace
}  // namespace tokenvm
