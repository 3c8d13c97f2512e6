// One copy between memory and a lower tier, and how a run of them is carried out.
#pragma once
#include <cstdint>
#include <span>

#include "tokenvm/codec.hpp"

namespace tokenvm {

// The low bit is the direction: 0 toward memory or the device, 1 away from it.
enum class Kind : uint8_t { kRead = 0, kWrite = 1, kCopyIn = 2, kCopyOut = 3 };
// kRenew: verify, then compute what the target will hold, where packing makes that another checksum.
enum class Check : uint8_t { kNone = 0, kCompute = 1, kVerify = 2, kRenew = 3 };
enum class Status : uint8_t {
  kQueued = 0,
  kLanded = 1,
  kShort = 2,    // the file ends before the copy does
  kDamaged = 3,  // the bytes do not have the checksum they should have
  kNoSpace = 4,  // ENOSPC, EDQUOT or EFBIG
  kFailed = 5,   // any other error of the device
  kDropped = 6,  // never started: the pool was closed
  kGone = 7,     // the file cannot be used at all: closed, vanished, read-only
};

struct Copy {
  Kind kind;
  Check check;
  int32_t fd;         // kRead, kWrite
  uint64_t place;     // far side: file offset, or the address in the lower tier
  uint64_t address;   // near side: destination of kRead and kCopyIn, source of kWrite and kCopyOut
  uint64_t nbytes;    // near side; never 0
  uint32_t checksum;  // CRC-32C of the source's bytes as they are stored, expected by kVerify and kRenew
  // What lies at `place`: `far_bytes` of the part as it is, followed at `tail` by the rest where that is not all of it;
  // or, if packed (kRead, kWrite), the part as the codec encoded it. A write that should be packed and does not fit
  // goes as it is.
  uint64_t far_bytes = nbytes;
  uint64_t tail = 0;
  bool packed = false;
};

struct Outcome {
  Status status = Status::kQueued;
  uint32_t checksum = 0;  // of a target's bytes as they are stored; kVerify of a read: of the source's. 0 for kNone
  bool packed = false;    // that is how the part is stored
};

inline bool is_file(Kind kind) { return kind == Kind::kRead || kind == Kind::kWrite; }
inline bool is_outward(Kind kind) { return (static_cast<uint8_t>(kind) & 1) != 0; }

// True if `next` may join a run that ends with `last`: the same kind, and one file range.
bool continues(const Copy& last, const Copy& next);

// Carries out a run (each copy continues the one before) and fills one outcome per copy. A file run is one vectored
// call, and one for each tail; if it stops early, each copy it did not finish is tried on its own, so that one bad part fails alone. A
// destination in memory whose copy failed is filled with 0xFF: never bytes that look good. Blocks; takes no lock.
// Packed parts pass through memory of the thread, as much as the run has far bytes, kept until the thread ends.
void execute(std::span<const Copy> run, std::span<Outcome> outcomes, const Codec& codec);

}  // namespace tokenvm
