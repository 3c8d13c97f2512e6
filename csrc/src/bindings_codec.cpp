// The codec as tokenvm.kernels.bitpack calls it: addresses are integers that it has checked.
#include <nanobind/nanobind.h>

#include "tokenvm/bitpack.hpp"

namespace nb = nanobind;
using Address = std::uintptr_t;
using NoGil = nb::call_guard<nb::gil_scoped_release>;

namespace {

void check(std::uint64_t nbytes) {
  if (nbytes % (2 * tokenvm::kBitpackValues) != 0) throw nb::value_error("bitpack takes parts of whole 512 bytes");
}

std::uint64_t encode(Address part, std::uint64_t nbytes, Address stored, std::uint64_t room) {
  check(nbytes);
  return tokenvm::bitpack_encode(reinterpret_cast<const void*>(part), nbytes, reinterpret_cast<void*>(stored), room);
}

bool decode(Address stored, std::uint64_t room, Address part, std::uint64_t nbytes) {
  check(nbytes);
  return tokenvm::bitpack_decode(reinterpret_cast<const void*>(stored), room, reinterpret_cast<void*>(part), nbytes);
}

}  // namespace

void bind_codec(nb::module_& m) {
  m.def("bitpack_encode", &encode, NoGil());
  m.def("bitpack_decode", &decode, NoGil());
}
