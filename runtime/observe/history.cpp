#include "runtime/observe/history.h"

namespace foretoken {

void History::add(const EngineStats& s) {
  Point point{s.uptime_s,
              s.speedup,
              s.speedup_last_minute,
              s.generated_tokens,
              s.prompt_tokens,
              s.acceptance.drafting_rounds,
              s.acceptance.drafted,
              s.acceptance.accepted,
              s.swaps,
              s.kv.pool_bytes
                  ? static_cast<double>(s.kv.used_bytes) / static_cast<double>(s.kv.pool_bytes)
                  : 0.0,
              s.version.value,
              s.requests_running,
              s.requests_waiting};
  std::lock_guard lock(mutex_);
  points_.push_back(point);
  if (points_.size() > kPoints) points_.pop_front();
}

boost::json::array History::json() const {
  namespace json = boost::json;
  auto interval = [](const std::optional<Interval>& i) -> json::value {
    if (!i) return nullptr;
    return json::array{i->value, i->low, i->high};
  };
  std::lock_guard lock(mutex_);
  json::array out;
  for (const Point& p : points_)
    out.push_back(json::object{{"uptime_s", p.uptime_s},
                               {"speedup", interval(p.speedup)},
                               {"speedup_last_minute", interval(p.speedup_last_minute)},
                               {"generated", p.generated},
                               {"prompt", p.prompt},
                               {"drafting_rounds", p.drafting_rounds},
                               {"drafted", p.drafted},
                               {"accepted", p.accepted},
                               {"swaps", p.swaps},
                               {"kv_occupancy", p.kv_occupancy},
                               {"version", p.version},
                               {"running", p.running},
                               {"waiting", p.waiting}});
  return out;
}

}  // namespace foretoken
