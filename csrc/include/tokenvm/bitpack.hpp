// The bitpack codec: bfloat16 values with their exponents in three bits. docs/codecs.md has the format.
#pragma once

#include <cstdint>

namespace tokenvm {

constexpr std::uint64_t kBitpackValues = 256;  // that share one top exponent
constexpr std::uint64_t kBitpackPlaneBytes = 3 * kBitpackValues / 8;

// Bytes before the escapes: rests, planes, tops.
constexpr std::uint64_t bitpack_fixed_bytes(std::uint64_t nbytes) {
  return nbytes / (2 * kBitpackValues) * (kBitpackValues + kBitpackPlaneBytes + 1);
}

// Both take parts whose bytes are a multiple of 512, and run on the active table of kernels.hpp; every table writes
// the same bytes. Source and target must not overlap.
//
// Writes at most `room` bytes to `stored` and returns how many; 0 if the part does not fit.
std::uint64_t bitpack_encode(const void* part, std::uint64_t nbytes, void* stored, std::uint64_t room);
// Reads at most `room` bytes, whatever they are, and writes exactly `nbytes`. False: no encoder wrote this.
bool bitpack_decode(const void* stored, std::uint64_t room, void* part, std::uint64_t nbytes);

}  // namespace tokenvm
