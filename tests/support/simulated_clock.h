// A clock that moves when it is told to. Any thread may read it.
#pragma once

#include <atomic>

#include "foretoken/protocol/transport.h"

namespace foretoken::testing {

class SimulatedClock final : public Clock {
 public:
  std::chrono::nanoseconds monotonic() const override { return std::chrono::nanoseconds(now_); }
  std::int64_t unix_ms() const override { return now_ / 1'000'000; }
  void advance(std::chrono::nanoseconds by) { now_ += by.count(); }

 private:
  std::atomic<std::int64_t> now_{0};
};

}  // namespace foretoken::testing
