#include "tokenvm/io_copy.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "tokenvm/crc32c.hpp"

namespace tokenvm {
namespace {

constexpr size_t kMostSegments = 1024;  // IOV_MAX
constexpr uint64_t kLargestFolio = 2 << 20;

uint8_t* at(uint64_t address) { return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(address)); }

// Bytes of one copy that lie together on both sides.
struct Piece {
  uint8_t* memory;
  uint64_t place;
  uint64_t nbytes;
};

std::vector<iovec> segments_of(std::span<const Piece> run) {
  std::vector<iovec> segments;
  for (const Piece& piece : run) {
    if (!segments.empty()) {
      iovec& last = segments.back();
      if (static_cast<uint8_t*>(last.iov_base) + last.iov_len == piece.memory) {
        last.iov_len += piece.nbytes;
        continue;
      }
    }
    segments.push_back({piece.memory, piece.nbytes});
  }
  return segments;
}

void advance(std::span<iovec>& rest, size_t nbytes) {
  while (nbytes > 0) {
    iovec& first = rest.front();
    const size_t step = std::min(nbytes, first.iov_len);
    first.iov_base = static_cast<uint8_t*>(first.iov_base) + step;
    first.iov_len -= step;
    nbytes -= step;
    if (first.iov_len == 0) rest = rest.subspan(1);
  }
}

struct Progress {
  uint64_t nbytes;  // moved before it stopped
  int error;        // errno, or 0 at the end of the file and on success
};

struct File {
  int fd;
  bool outward;
};

// Loops until everything moved, the file ended or a call failed.
Progress transfer(const File& file, std::span<const Piece> run) {
  std::vector<iovec> segments = segments_of(run);
  std::span<iovec> rest(segments);
  uint64_t moved = 0;
  while (!rest.empty()) {
    const int count = static_cast<int>(std::min(rest.size(), kMostSegments));
    const off_t offset = static_cast<off_t>(run.front().place + moved);
    const ssize_t n = file.outward ? pwritev(file.fd, rest.data(), count, offset)
                                   : preadv(file.fd, rest.data(), count, offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return {moved, errno};
    if (n == 0) return {moved, 0};
    moved += static_cast<uint64_t>(n);
    advance(rest, static_cast<size_t>(n));
  }
  return {moved, 0};
}

Status status_of(const Progress& progress, uint64_t nbytes) {
  if (progress.nbytes >= nbytes) return Status::kLanded;
  // An unaligned end of file under O_DIRECT: the first call is cut short, the next one is refused.
  if (progress.error == 0 || (progress.error == EINVAL && progress.nbytes > 0)) return Status::kShort;
  switch (progress.error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return Status::kNoSpace;
    case EBADF:
    case EROFS:
    case EPERM:
    case EACCES:
    case ESTALE:
    case ENODEV:
    case ENXIO:
      return Status::kGone;
    default:
      return Status::kFailed;
  }
}

// A buffered file would fill the page cache with bytes that nobody reads twice from there. The cache drops whole folios
// that are clean, so the range is widened to the largest folio, and what was written is waited for.
void drop_behind(const File& file, std::span<const Piece> run) {
  const int flags = fcntl(file.fd, F_GETFL);
  if (flags < 0 || (flags & O_DIRECT)) return;
  const uint64_t begin = run.front().place / kLargestFolio * kLargestFolio;
  const uint64_t end = (run.back().place + run.back().nbytes + kLargestFolio - 1) / kLargestFolio * kLargestFolio;
  const off_t offset = static_cast<off_t>(begin), nbytes = static_cast<off_t>(end - begin);
  constexpr unsigned kWhole = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  if (file.outward) sync_file_range(file.fd, offset, nbytes, kWhole);
  posix_fadvise(file.fd, offset, nbytes, POSIX_FADV_DONTNEED);
}

// Pieces that follow one another in the file; the status of each.
void move_pieces(const File& file, std::span<const Piece> pieces, std::span<Outcome> outcomes) {
  const Progress whole = transfer(file, pieces);
  uint64_t end = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const uint64_t nbytes = pieces[i].nbytes;
    end += nbytes;
    const bool alone = pieces.size() == 1;
    const Progress own =
        whole.nbytes >= end ? Progress{nbytes, 0} : alone ? whole : transfer(file, pieces.subspan(i, 1));
    outcomes[i].status = status_of(own, nbytes);
  }
  drop_behind(file, pieces);
}

void move_tail(const File& file, const Copy& copy, Outcome& outcome) {
  if (outcome.packed || copy.far_bytes == copy.nbytes || outcome.status != Status::kLanded) return;
  const Piece tail{at(copy.address) + copy.far_bytes, copy.tail, copy.nbytes - copy.far_bytes};
  move_pieces(file, {&tail, 1}, {&outcome, 1});
}

// Aligned for direct I/O; one for each thread, as large as its largest run.
class Bounce {
 public:
  uint8_t* reserve(uint64_t nbytes) {
    if (nbytes > room_) {
      const uint64_t room = (nbytes + kHugePage - 1) / kHugePage * kHugePage;
      memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(kHugePage, room)));
      room_ = memory_ ? room : 0;
      if (!memory_) throw std::bad_alloc();
      (void)madvise(memory_.get(), room, MADV_HUGEPAGE);  // one page to pin for each read, where the kernel can
    }
    return memory_.get();
  }

 private:
  static constexpr size_t kHugePage = 2 << 20;
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> memory_;
  uint64_t room_ = 0;
};

// What each copy moves in memory at its place: the part itself, or its packed form in the bounce.
std::vector<Piece> heads_of(std::span<const Copy> run, std::span<Outcome> outcomes, const Codec& codec) {
  thread_local Bounce bounce;
  uint64_t packed_bytes = 0;
  for (const Copy& copy : run) packed_bytes += copy.packed ? copy.far_bytes : 0;
  uint8_t* room = packed_bytes ? bounce.reserve(packed_bytes) : nullptr;
  std::vector<Piece> heads;
  for (size_t i = 0; i < run.size(); ++i) {
    const Copy& copy = run[i];
    const bool fits = copy.packed && (!is_outward(copy.kind) ||
                                      codec.encode(at(copy.address), copy.nbytes, room, copy.far_bytes));
    outcomes[i].packed = fits;
    heads.push_back({fits ? room : at(copy.address), copy.place, copy.far_bytes});
    if (fits) room += copy.far_bytes;
  }
  return heads;
}

void verify(const Copy& copy, Outcome& outcome) {
  const bool asked = copy.check == Check::kVerify || copy.check == Check::kRenew;
  if (asked && outcome.checksum != copy.checksum) outcome.status = Status::kDamaged;
}

// What the source holds is verified, what the target holds is reported.
void check(const Copy& copy, const Piece& head, Outcome& outcome) {
  if (copy.check == Check::kNone) return;
  const bool read_packed = outcome.packed && !is_outward(copy.kind);
  if (read_packed || copy.check != Check::kCompute || !outcome.packed) {
    outcome.checksum = read_packed ? crc32c(head.memory, head.nbytes) : crc32c(at(copy.address), copy.nbytes);
    verify(copy, outcome);
  }
  if (outcome.packed && !read_packed) outcome.checksum = crc32c(head.memory, head.nbytes);
}

void unpack(const Copy& copy, const Piece& head, Outcome& outcome, const Codec& codec) {
  if (!outcome.packed || is_outward(copy.kind) || outcome.status != Status::kLanded) return;
  if (!codec.decode(head.memory, head.nbytes, at(copy.address), copy.nbytes)) outcome.status = Status::kDamaged;
  if (copy.check == Check::kRenew) outcome.checksum = crc32c(at(copy.address), copy.nbytes);
}

void move_file(std::span<const Copy> run, std::span<Outcome> outcomes, const Codec& codec) {
  const File file{run.front().fd, is_outward(run.front().kind)};
  const std::vector<Piece> heads = heads_of(run, outcomes, codec);
  move_pieces(file, heads, outcomes);
  for (size_t i = 0; i < run.size(); ++i) {
    move_tail(file, run[i], outcomes[i]);
    if (outcomes[i].status == Status::kLanded) check(run[i], heads[i], outcomes[i]);
    unpack(run[i], heads[i], outcomes[i], codec);
  }
}

void move_memory(const Copy& copy, Outcome& outcome) {
  const bool outward = is_outward(copy.kind);
  std::memcpy(at(outward ? copy.place : copy.address), at(outward ? copy.address : copy.place), copy.nbytes);
  outcome.status = Status::kLanded;
  check(copy, {}, outcome);
}

void spoil(const Copy& copy) {
  if (copy.kind == Kind::kWrite) return;
  std::memset(at(copy.kind == Kind::kCopyOut ? copy.place : copy.address), 0xFF, copy.nbytes);
}

}  // namespace

bool continues(const Copy& last, const Copy& next) {
  if (last.kind != next.kind) return false;
  return !is_file(last.kind) || (last.fd == next.fd && last.place + last.far_bytes == next.place);
}

void execute(std::span<const Copy> run, std::span<Outcome> outcomes, const Codec& codec) {
  if (is_file(run.front().kind)) {
    move_file(run, outcomes, codec);
  } else {
    for (size_t i = 0; i < run.size(); ++i) move_memory(run[i], outcomes[i]);
  }
  for (size_t i = 0; i < run.size(); ++i)
    if (outcomes[i].status != Status::kLanded) spoil(run[i]);
}

}  // namespace tokenvm
