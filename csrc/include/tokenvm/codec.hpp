// What turns a part into fewer bytes and back. Used by several I/O threads at once.
#pragma once
#include <cstdint>

namespace tokenvm {

class Codec {
 public:
  virtual ~Codec() = default;
  // Fills all `room` bytes of `stored`; false if the part does not fit.
  virtual bool encode(const uint8_t* part, uint64_t nbytes, uint8_t* stored, uint64_t room) const = 0;
  // Fills all `nbytes` of `part`; false if nothing like this was ever encoded. Reads nothing past `room`.
  virtual bool decode(const uint8_t* stored, uint64_t room, uint8_t* part, uint64_t nbytes) const = 0;
};

class BitpackCodec : public Codec {
 public:
  bool encode(const uint8_t* part, uint64_t nbytes, uint8_t* stored, uint64_t room) const override;
  bool decode(const uint8_t* stored, uint64_t room, uint8_t* part, uint64_t nbytes) const override;
};

}  // namespace tokenvm
