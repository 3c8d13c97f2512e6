#include "tokenvm/io_copy.hpp"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "tokenvm/crc32c.hpp"

namespace tokenvm {
namespace {

constexpr size_t kMostSegments = 1024;  // IOV_MAX

uint8_t* at(uint64_t address) { return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(address)); }

std::vector<iovec> segments_of(std::span<const Copy> run) {
  std::vector<iovec> segments;
  for (const Copy& copy : run) {
    if (!segments.empty()) {
      iovec& last = segments.back();
      if (static_cast<uint8_t*>(last.iov_base) + last.iov_len == at(copy.address)) {
        last.iov_len += copy.nbytes;
        continue;
      }
    }
    segments.push_back({at(copy.address), copy.nbytes});
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

// Loops until everything moved, the file ended or a call failed.
Progress transfer(std::span<const Copy> run) {
  std::vector<iovec> segments = segments_of(run);
  std::span<iovec> rest(segments);
  const bool outward = is_outward(run.front().kind);
  const int fd = run.front().fd;
  uint64_t moved = 0;
  while (!rest.empty()) {
    const int count = static_cast<int>(std::min(rest.size(), kMostSegments));
    const off_t offset = static_cast<off_t>(run.front().place + moved);
    const ssize_t n = outward ? pwritev(fd, rest.data(), count, offset) : preadv(fd, rest.data(), count, offset);
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
  const bool full = progress.error == ENOSPC || progress.error == EDQUOT || progress.error == EFBIG;
  return full ? Status::kNoSpace : Status::kFailed;
}

void move_file(std::span<const Copy> run, std::span<Outcome> outcomes) {
  const Progress whole = transfer(run);
  uint64_t end = 0;
  for (size_t i = 0; i < run.size(); ++i) {
    end += run[i].nbytes;
    const bool alone = run.size() == 1;
    const Progress own = whole.nbytes >= end ? Progress{run[i].nbytes, 0} : alone ? whole : transfer(run.subspan(i, 1));
    outcomes[i].status = status_of(own, run[i].nbytes);
  }
}

void move_memory(const Copy& copy, Outcome& outcome) {
  const bool outward = is_outward(copy.kind);
  std::memcpy(at(outward ? copy.place : copy.address), at(outward ? copy.address : copy.place), copy.nbytes);
  outcome.status = Status::kLanded;
}

// The near side is what is checked: what arrived in memory, or what was meant to be written.
void check(const Copy& copy, Outcome& outcome) {
  if (copy.check == Check::kNone) return;
  outcome.checksum = crc32c(at(copy.address), copy.nbytes);
  if (copy.check == Check::kVerify && outcome.checksum != copy.checksum) outcome.status = Status::kDamaged;
}

void spoil(const Copy& copy) {
  if (copy.kind == Kind::kWrite) return;
  std::memset(at(copy.kind == Kind::kCopyOut ? copy.place : copy.address), 0xFF, copy.nbytes);
}

// A buffered file would fill the page cache with bytes that nobody reads twice from there.
void drop_behind(std::span<const Copy> run) {
  const int flags = fcntl(run.front().fd, F_GETFL);
  if (flags < 0 || (flags & O_DIRECT)) return;
  const off_t offset = static_cast<off_t>(run.front().place);
  const off_t nbytes = static_cast<off_t>(run.back().place + run.back().nbytes) - offset;
  if (is_outward(run.front().kind)) sync_file_range(run.front().fd, offset, nbytes, SYNC_FILE_RANGE_WRITE);
  posix_fadvise(run.front().fd, offset, nbytes, POSIX_FADV_DONTNEED);
}

}  // namespace

bool continues(const Copy& last, const Copy& next) {
  if (last.kind != next.kind) return false;
  return !is_file(last.kind) || (last.fd == next.fd && last.place + last.nbytes == next.place);
}

void execute(std::span<const Copy> run, std::span<Outcome> outcomes) {
  if (is_file(run.front().kind)) {
    move_file(run, outcomes);
    drop_behind(run);
  } else {
    for (size_t i = 0; i < run.size(); ++i) move_memory(run[i], outcomes[i]);
  }
  for (size_t i = 0; i < run.size(); ++i) {
    if (outcomes[i].status == Status::kLanded) check(run[i], outcomes[i]);
    if (outcomes[i].status != Status::kLanded) spoil(run[i]);
  }
}

}  // namespace tokenvm
