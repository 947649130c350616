#include "runtime/observe/history.h"

namespace foretoken {

namespace json = boost::json;

void History::add(const EngineStats& s) {
  const auto interval = [](const std::optional<Interval>& i) -> json::value {
    if (!i) return nullptr;
    return json::array{i->value, i->low, i->high};
  };
  json::object point{{"uptime_s", s.uptime_s},
                     {"speedup", interval(s.speedup)},
                     {"speedup_last_minute", interval(s.speedup_last_minute)},
                     {"generated", s.generated_tokens},
                     {"prompt", s.prompt_tokens},
                     {"drafting_rounds", s.acceptance.drafting_rounds},
                     {"drafted", s.acceptance.drafted},
                     {"accepted", s.acceptance.accepted},
                     {"swaps", s.swaps},
                     {"kv_occupancy", s.kv.occupancy()},
                     {"version", s.version.value},
                     {"running", s.requests_running},
                     {"waiting", s.requests_waiting}};
  std::lock_guard lock(mutex_);
  points_.push_back(std::move(point));
  if (points_.size() > kPoints) points_.pop_front();
}

json::array History::json() const {
  std::lock_guard lock(mutex_);
  return json::array(points_.begin(), points_.end());
}

}  // namespace foretoken
