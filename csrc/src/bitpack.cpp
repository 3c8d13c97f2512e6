#include "tokenvm/bitpack.hpp"

#include "tokenvm/kernels.hpp"

namespace tokenvm {

std::uint64_t bitpack_encode(const void* part, std::uint64_t nbytes, void* stored, std::uint64_t room) {
  return kernels().bitpack_encode(part, nbytes, stored, room);
}

bool bitpack_decode(const void* stored, std::uint64_t room, void* part, std::uint64_t nbytes) {
  return kernels().bitpack_decode(stored, room, part, nbytes);
}

}  // namespace tokenvm
