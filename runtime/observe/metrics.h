// GET /metrics: the engine's and the links' figures and the request histograms as Prometheus text,
// with vLLM's names after the prefix "foretoken:" so that queries and dashboards made for it work
// after a rename.
#pragma once

#include <string>

#include "runtime/observe/request_metrics.h"
#include "runtime/observe/stats.h"

namespace foretoken {

struct MetricsContext {
  std::string model_name, isa;
  std::int64_t max_model_len = 0;
  std::string kv_mode;
  double heartbeat_age_s = 0;
};

// engine is null while the model loads.
std::string metrics_text(const EngineStats* engine, const LinkStats& link,
                         const MetricsContext& context, RequestMetrics& requests);

}  // namespace foretoken
