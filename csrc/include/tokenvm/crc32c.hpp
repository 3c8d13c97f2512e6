// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78): the checksum of every part of a page.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tokenvm {

// Checksum of `nbytes` at `data`, continuing from `crc` (0 to begin): crc32c(a + b) == crc32c(b, crc32c(a)).
// Chooses the fastest path of this machine; every path gives the same value.
uint32_t crc32c(const void* data, size_t nbytes, uint32_t crc = 0) noexcept;

// The specification: one table look-up a byte.
uint32_t crc32c_portable(const void* data, size_t nbytes, uint32_t crc = 0) noexcept;

}  // namespace tokenvm
