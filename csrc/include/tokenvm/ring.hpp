// The staging ring: programs of reads that land in order in a bounded buffer, paced by credits the consumer gives back.
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

#include "tokenvm/io_pool.hpp"

namespace tokenvm {

// Tickets are one ascending sequence from 0; ticket t lands at base + (t % slots) * stride.
//
//   released <= landed <= started <= submitted,   started <= released + slots
//
// Ticket t may start once t < released + slots, so nothing is ever written into a slot that was not given back. Starts
// are strictly in order; several runs may be in flight. One consumer thread calls submit, wait, release and cancel.
class Ring : public WorkSource {
 public:
  Ring(IoPool& pool, uint64_t base, uint64_t slots, uint64_t stride);
  ~Ring() override;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Queues copies (kRead or kCopyIn, each at most `stride` bytes) behind what was queued before; their addresses are
  // set here. Returns the first ticket. Sources stay valid until they landed or were cancelled.
  uint64_t submit(std::vector<Copy> program);

  // Blocks until every ticket before `end` has landed or failed. kFailed: some ticket of [released, end) failed;
  // kDropped: cancelled or closed meanwhile. Throws if `end` was never submitted or needs more slots than exist.
  Landing wait(uint64_t end);

  // Gives back the slots of all tickets before `end`; throws if one has not landed. Earlier ends change nothing.
  void release(uint64_t end);

  struct Failure {
    uint64_t ticket;
    Status status;
  };
  // Tickets of [begin, end) that failed, ascending, and how. Kept until cancel(); at most the last 65,536.
  std::vector<Failure> failed(uint64_t begin, uint64_t end);

  // Drops what has not started, waits for what is in flight, takes all credits back and forgets failures.
  void cancel();

  uint64_t stride() const { return stride_; }
  // {released, landed, started, submitted} at one moment.
  std::array<uint64_t, 4> marks();

  bool next(Run& run) override;
  void finished(const Run& run) override;

 private:
  size_t longest_run() const;
  size_t ready() const;
  bool any_failed(uint64_t begin, uint64_t end) const;

  IoPool& pool_;
  const uint64_t base_, slots_, stride_, most_bytes_, most_copies_;
  std::deque<Copy> queue_;        // tickets [started_, submitted_)
  std::vector<uint8_t> arrived_;  // by slot, for tickets [landed_, started_)
  std::deque<Failure> failures_;
  uint64_t released_ = 0, landed_ = 0, started_ = 0, submitted_ = 0;
  uint64_t wanted_ = 0;  // somebody waits, or waited, for the tickets before it
  uint64_t runs_in_flight_ = 0, cancels_ = 0;
};

}  // namespace tokenvm
