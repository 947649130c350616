// The figures of a replay as JSON: times to first token, per token, between pieces and end to end;
// throughput, failures, acceptance, speedup; overall, by quarter of the log and by domain.
// Definitions stand beside the figures, because tools differ.
#pragma once

#include <boost/json.hpp>
#include <span>
#include <vector>

#include "runtime/replay/player.h"

namespace foretoken {

// mean, p50, p90, p95, p99 and max; null where there is no value. Percentiles interpolate linearly
// between order statistics.
boost::json::value percentiles(std::vector<double> values);

boost::json::object summarize(const ReplayResult& result, const std::vector<LoggedRequest>& log,
                              const ReplayOptions& options);

// Every outcome with its text, for --save-outputs: one JSON object a line.
std::string outcomes_jsonl(const ReplayResult& result);

}  // namespace foretoken
