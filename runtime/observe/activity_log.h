// The line a server logs every few seconds while it works: throughput, requests, KV use,
// acceptance. Silent when idle. Pure: figures in, text out.
#pragma once

#include <optional>
#include <string>

#include "runtime/observe/stats.h"

namespace foretoken {

class ActivityLog {
 public:
  // nullopt: nothing was done since the last call and nothing is open.
  std::optional<std::string> line(const EngineStats& now);

 private:
  std::optional<EngineStats> last_;
};

}  // namespace foretoken
