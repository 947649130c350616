// Finished requests that wait to be replayed, bounded by count and bytes; what does not fit is
// dropped, newest first. Not thread-safe.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <optional>

#include "foretoken/protocol/trace_size.h"

namespace foretoken {

class ReplayQueue {
 public:
  ReplayQueue(std::size_t max_requests, std::size_t max_bytes)
      : max_requests_(max_requests), max_bytes_(max_bytes) {}

  // false: it did not fit.
  bool push(std::unique_ptr<RequestTrace> trace, std::chrono::nanoseconds now) {
    const std::size_t bytes = approximate_bytes(*trace);
    if (queue_.size() >= max_requests_ || (!queue_.empty() && bytes_ + bytes > max_bytes_))
      return false;
    bytes_ += bytes;
    queue_.push_back({std::move(trace), now, bytes});
    return true;
  }
  // nullptr: empty.
  std::unique_ptr<RequestTrace> pop() {
    if (queue_.empty()) return nullptr;
    std::unique_ptr<RequestTrace> trace = std::move(queue_.front().trace);
    bytes_ -= queue_.front().bytes;
    queue_.pop_front();
    return trace;
  }
  void clear() {
    queue_.clear();
    bytes_ = 0;
  }
  // Since when the oldest waits; nullopt: none does.
  std::optional<std::chrono::nanoseconds> oldest() const {
    return queue_.empty() ? std::nullopt : std::optional(queue_.front().since);
  }

 private:
  struct Waiting {
    std::unique_ptr<RequestTrace> trace;
    std::chrono::nanoseconds since;
    std::size_t bytes;
  };
  const std::size_t max_requests_, max_bytes_;
  std::deque<Waiting> queue_;
  std::size_t bytes_ = 0;
};

}  // namespace foretoken
