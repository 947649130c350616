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
  mutable std::mutex mutex_;
  std::deque<boost::json::object> points_;
};

}  // namespace foretoken
