// GET /stats: EngineStats and LinkStats as JSON. The schema is described in runtime/README.md; its
// name changes when a field's meaning does, and fields are only ever added under one name.
#pragma once

#include <boost/json.hpp>
#include <string>

#include "runtime/observe/stats.h"

namespace foretoken {

inline constexpr const char* kStatsSchema = "foretoken.stats/1";

struct StatsContext {
  std::string model, fingerprint, kv_mode, isa;
  std::int64_t max_model_len = 0;
  bool draining = false;
};

boost::json::object stats_json(const EngineStats& stats, const LinkStats& link,
                               const StatsContext& context);

}  // namespace foretoken
