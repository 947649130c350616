// The last hour of the figures worth plotting, one point every few seconds: what a dashboard shows
// when it is opened. Bounded ring; any thread.
#pragma once

#include <boost/json.hpp>
#include <deque>
#include <mutex>

#include "runtime/observe/stats.h"

namespace foretoken {

class History {
 public:
  static constexpr std::size_t kPoints = 720;  // an hour at 5 s
  void add(const EngineStats& stats);
  boost::json::array json() const;  // oldest first

 private:
  struct Point {
    double uptime_s;
    std::optional<Interval> speedup, speedup_last_minute;
    std::int64_t generated, prompt, drafting_rounds, drafted, accepted, swaps;
    double kv_occupancy;
    std::uint64_t version;
    std::int64_t running, waiting;
  };
  mutable std::mutex mutex_;
  std::deque<Point> points_;
};

}  // namespace foretoken
