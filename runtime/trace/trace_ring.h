// A bounded single-producer single-consumer ring of finished requests' traces: the only thing the
// engine thread touches on the way to the trainer. Preallocated; a push is two atomic loads and two
// stores, never a lock, a wait or a system call. When it is full the newest is dropped. Invariant:
// tail <= head <= tail + capacity; bytes = the estimated size of what is between them.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "foretoken/protocol/trace_size.h"

namespace foretoken {

class TraceRing {
 public:
  TraceRing(std::size_t capacity, std::size_t max_bytes)
      : slots_(capacity), max_bytes_(max_bytes) {}

  // Producer. false: full by count or bytes, the trace is dropped.
  bool try_push(std::unique_ptr<RequestTrace> trace) noexcept {
    const std::size_t head = head_.load(std::memory_order_relaxed);
    if (head - tail_.load(std::memory_order_acquire) == slots_.size()) return false;
    const std::size_t bytes = approximate_bytes(*trace);
    // The first into an empty ring always enters: a request larger than the budget must not starve.
    const std::size_t held = bytes_.load(std::memory_order_relaxed);
    if (held > 0 && held + bytes > max_bytes_) return false;
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
    slots_[head % slots_.size()] = std::move(trace);
    head_.store(head + 1, std::memory_order_release);
    return true;
  }

  // Consumer. nullptr: empty.
  std::unique_ptr<RequestTrace> try_pop() noexcept {
    const std::size_t tail = tail_.load(std::memory_order_relaxed);
    if (head_.load(std::memory_order_acquire) == tail) return nullptr;
    std::unique_ptr<RequestTrace> trace = std::move(slots_[tail % slots_.size()]);
    bytes_.fetch_sub(approximate_bytes(*trace), std::memory_order_relaxed);
    tail_.store(tail + 1, std::memory_order_release);
    return trace;
  }

 private:
  std::vector<std::unique_ptr<RequestTrace>> slots_;
  const std::size_t max_bytes_;
  alignas(64) std::atomic<std::size_t> head_{0};  // written by the producer
  alignas(64) std::atomic<std::size_t> tail_{0};  // written by the consumer
  alignas(64) std::atomic<std::size_t> bytes_{0};
};

}  // namespace foretoken
