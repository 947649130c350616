// The engine's trace sink and the state machine that serialises traces and sends them.
// push() is the engine thread's and never waits; pump() is the link thread's. What cannot be sent
// or stored is dropped and counted by reason:
//   ring_full   the link thread fell behind        no_trainer  nobody is connected
//   hwm         the trainer does not keep up       disk        the trace folder refused a record
//   opted_out   the request or its key asked not to be traced (by count_opted_out)
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "foretoken/protocol/trace_segment.h"
#include "foretoken/protocol/transport.h"
#include "runtime/trace/trace_ring.h"

namespace foretoken {

class TracePublisher {
 public:
  // segments may be null. ring_capacity in requests.
  TracePublisher(std::uint64_t server_run, std::size_t ring_capacity, std::size_t ring_bytes,
                 std::unique_ptr<TraceSegmentWriter> segments);

  // Engine thread.
  void push(std::unique_ptr<RequestTrace> trace) noexcept;
  // Any thread.
  void count_opted_out() noexcept { count(kOptedOut); }
  std::int64_t sent() const { return sent_.load(std::memory_order_relaxed); }
  std::map<std::string, std::int64_t> dropped() const;  // by reason, those that happened
  std::int64_t dropped_total() const;

  // Link thread: serialises and sends everything in the ring. trainer_connected only names the
  // reason of a drop. `sent` (may be empty) gets every trace afterwards, whatever became of it.
  void pump(Sender& sender, bool trainer_connected,
            const std::function<void(std::unique_ptr<RequestTrace>)>& sent = {});
  // Link thread: deletes stored traces that are too old.
  void expire() {
    if (segments_) segments_->expire();
  }

 private:
  enum Reason { kRingFull, kHighWaterMark, kNoTrainer, kDisk, kOptedOut, kReasons };
  void count(Reason reason) noexcept { dropped_[reason].fetch_add(1, std::memory_order_relaxed); }

  const std::uint64_t server_run_;
  TraceRing ring_;
  std::unique_ptr<TraceSegmentWriter> segments_;
  std::atomic<std::int64_t> sent_{0};
  std::array<std::atomic<std::int64_t>, kReasons> dropped_{};
  bool disk_warned_ = false;
};

}  // namespace foretoken
