// The server's own figures during a replay, from GET /stats: a time series, and marks (with the
// speedup estimator's sums) between which the speedup of a span of the run is measured. A server
// without /stats gives none, and that is no error.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runtime/observe/speedup.h"
#include "runtime/replay/http_client.h"

namespace foretoken {

// Something that happened to a version: a verdict of the trainer's gate, or of the server's canary.
struct SpeculatorEvent {
  std::int64_t unix_ms = 0;
  std::string text;  // "v3 promoted: ..."
  bool operator==(const SpeculatorEvent&) const = default;
};

struct StatsSample {
  double at_s = 0;  // since the replay began
  std::optional<Interval> speedup, speedup_last_minute;
  double acceptance_length = 0, acceptance_length_last_minute = 0, decode_tokens_per_s = 0;
  std::int64_t drafting_rounds = 0, accepted = 0;
  std::uint64_t version = 0;
  std::int64_t swaps = 0, running = 0;
  std::optional<std::int64_t> trainer_step;
  std::optional<Interval> net_speedup;
  std::vector<SpeculatorEvent> events;  // the newest, by time
};

struct StatsMark {
  double at_s = 0;
  std::optional<StatsSample> sample;
  std::optional<SpeedupSums> sums;
  boost::json::object whole;  // the answer as it was, less the sums
};

// GET of a JSON object; nullopt: not for us, or not there.
std::optional<boost::json::value> get_json(HttpClient& client, const std::string& path);
std::optional<StatsSample> read_stats(HttpClient& client, double at_s);
StatsMark mark_stats(HttpClient& client, double at_s);
// Of the rounds between two marks; nullopt: too few control rounds, or no sums.
std::optional<Interval> speedup_between(const StatsMark& from, const StatsMark& to);

boost::json::value to_json(
    const std::optional<Interval>& interval);  // {"value", "ci95": [low, high], ...} or null
boost::json::object to_json(const StatsSample& sample);

}  // namespace foretoken
