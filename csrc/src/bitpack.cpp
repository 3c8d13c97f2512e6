#include "tokenvm/bitpack.hpp"

#include <cstring>

#include "tokenvm/codec.hpp"
#include "tokenvm/kernels.hpp"

namespace tokenvm {

std::uint64_t bitpack_encode(const void* part, std::uint64_t nbytes, void* stored, std::uint64_t room) {
  return kernels().bitpack_encode(part, nbytes, stored, room);
}

bool bitpack_decode(const void* stored, std::uint64_t room, void* part, std::uint64_t nbytes) {
  return kernels().bitpack_decode(stored, room, part, nbytes);
}

bool BitpackCodec::encode(const uint8_t* part, uint64_t nbytes, uint8_t* stored, uint64_t room) const {
  const uint64_t used = bitpack_encode(part, nbytes, stored, room);
  std::memset(stored + used, 0, room - used);
  return used > 0;
}

bool BitpackCodec::decode(const uint8_t* stored, uint64_t room, uint8_t* part, uint64_t nbytes) const {
  return bitpack_decode(stored, room, part, nbytes);
}

}  // namespace tokenvm
