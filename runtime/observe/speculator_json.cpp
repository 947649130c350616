#include "runtime/observe/speculator_json.h"

#include <cmath>

namespace foretoken {
namespace {

namespace json = boost::json;

json::value finite(double value) {
  return std::isfinite(value) ? json::value(value) : json::value(nullptr);
}

json::value version_or_null(const std::optional<SpeculatorVersion>& version) {
  return version ? json::value(version->value) : json::value(nullptr);
}

json::value speedup(const std::map<std::string, Interval>& map, const std::string& key) {
  const auto found = map.find(key);
  if (found == map.end()) return nullptr;
  const Interval& i = found->second;
  return json::object{{"value", finite(i.value)},
                      {"ci95", json::array{finite(i.low), finite(i.high)}}};
}

}  // namespace

json::value gain_json(const GainFigures& gain) {
  if (gain.requests < 2) return nullptr;
  return json::object{{"requests", gain.requests},
                      {"gain", finite(gain.gain)},
                      {"ci95", json::array{finite(gain.low), finite(gain.high)}}};
}

json::value canary_json(const SpeculatorState& s) {
  if (!s.canary) return nullptr;
  return json::object{
      {"version", s.canary->version.value},    {"since_s", s.canary->since_s},
      {"fraction", s.canary->fraction},        {"requests_judged", s.canary->replay.requests},
      {"replay", gain_json(s.canary->replay)}, {"live", gain_json(s.canary->live)}};
}

json::object speculator_json(const SpeculatorState& s, const EngineStats& stats) {
  json::array proven, banned, tiers, round_ms;
  for (const std::uint64_t v : s.proven) proven.push_back(v);
  for (const std::uint64_t v : s.banned) banned.push_back(v);
  for (const double ms : stats.round_ms_by_rows) round_ms.push_back(finite(ms));
  // A tier that has not drafted is there all the same: the controller found it not worth its cost.
  for (const std::string& tier : s.tiers) {
    AcceptanceStats a;
    if (const auto found = stats.by_kind.find(tier); found != stats.by_kind.end())
      a = found->second;
    tiers.push_back(json::object{{"tier", tier},
                                 {"drafting_rounds", a.drafting_rounds},
                                 {"drafted", a.drafted},
                                 {"accepted", a.accepted},
                                 {"acceptance_length", a.acceptance_length()},
                                 {"speedup", speedup(stats.speedup_by_kind, tier)}});
  }
  return {{"object", "speculator"},
          {"version", s.served.value},
          {"parent", s.parent.value},
          {"kind", s.kind},
          {"age_s", s.age_s},
          {"verdict", s.verdict.empty() ? json::value(nullptr) : json::value(s.verdict)},
          {"frozen", s.frozen},
          {"canary", canary_json(s)},
          {"waiting", version_or_null(s.waiting)},
          {"previous", version_or_null(s.previous)},
          {"watch", gain_json(s.watch)},
          {"proven", std::move(proven)},
          {"never_again", std::move(banned)},
          {"promoted", s.promoted},
          {"rolled_back", s.rolled_back},
          {"refused", s.refused},
          {"judged_requests", s.judged},
          {"judge_dropped", s.judge_dropped},
          {"swap_pause_ms", json::object{{"last", stats.swap_pause_last_ms},
                                         {"p50", stats.swap_pause_p50_ms},
                                         {"p99", stats.swap_pause_p99_ms},
                                         {"max", stats.swap_pause_max_ms}}},
          {"tiers", std::move(tiers)},
          {"costs", json::object{{"round_ms_by_rows", std::move(round_ms)},
                                 {"head_start_ms", stats.head_start_ms},
                                 {"head_step_ms", stats.head_step_ms}}},
          {"lineage", s.lineage},
          {"definition",
           "gain: relative, of the whole portfolio over the version it is compared to: replay and "
           "watch of predicted speed, both replayed on the same finished requests; live of tokens "
           "a round, as its requests and the others' ran; intervals are valid at any time"}};
}

}  // namespace foretoken
