// Plays a traffic log against a server and records what became of each request.
//   closed loop  `concurrency` requests in flight at any time, the next sent when one is complete
//   open loop    each request at its own time, however late the server is; none is dropped or sent
//                twice
//   at a load    an open loop of random arrivals, at a share of the rate that a closed-loop warm-up
//                shows the server can bear; needs a time limit, in which each quarter of the log
//                gets its part
// Every request in flight has a thread with a blocking client. play() returns when all of them are
// done.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "foretoken/protocol/result.h"
#include "runtime/replay/ask.h"
#include "runtime/replay/log.h"
#include "runtime/replay/outcome.h"
#include "runtime/replay/plan.h"
#include "runtime/replay/server_stats.h"

namespace foretoken {

struct ReplayOptions {
  ServerUrl url;
  std::string api_key;
  bool open_loop = false;
  int concurrency = 1;     // closed loop
  double rate = 0;         // open loop: requests a second; 0: the log's own times
  double load = 0;         // > 0: arrivals at this share of what the warm-up's concurrency achieves
  double limit_s = 0;      // thin the log evenly to fit; 0: all of it
  double timeout_s = 300;  // of silence
  double stats_every_s = 2;
  AskOptions ask;
  // After the log: so many requests sent again without speculation, their texts compared; of them
  // up to `check_long` whose prompt and answer reach past check_long_tokens. A request without a
  // seed is sent again with the one the server chose the first time.
  std::size_t check = 0, check_long = 0;
  std::int64_t check_long_tokens = 700;
};

struct ReplayProgress {
  const char* phase = "";  // "loading", "warm-up", "replay", "check"
  double elapsed_s = 0;
  std::size_t sent = 0, completed = 0, failed = 0, expected = 0;
  int quarter = 0;
  std::int64_t completion_tokens = 0;
  std::optional<StatsSample> stats;  // the newest
};

struct CheckedRequest {
  std::size_t index = 0;
  std::int64_t tokens = 0;  // prompt and answer
  bool equal = false;
  std::string error = {};             // of the second sending
  std::string text = {}, again = {};  // kept where they differ
};

struct ReplayResult {
  std::vector<RequestOutcome> outcomes;  // in the order sent
  double wall_s = 0;                     // of the log alone
  bool interrupted = false;
  std::vector<StatsMark> marks;  // at the beginning, each quarter's border, and the end
  std::vector<StatsSample> samples;
  boost::json::value speculator;  // GET /v1/speculator at the end; null: not to be had
  double capacity = 0, rate = 0;  // at a load: requests a second of the warm-up, and sent
  std::vector<CheckedRequest> checks;
};

// on_progress: about five times a second, from one thread. `stop` may be set by a signal handler.
// An error only where nothing could be done at all (a log without times for an open loop).
Result<ReplayResult> play(const std::vector<LoggedRequest>& log, const ReplayOptions& options,
                          const std::function<void(const ReplayProgress&)>& on_progress,
                          const std::atomic<bool>& stop);

}  // namespace foretoken
