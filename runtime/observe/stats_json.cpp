#include "runtime/observe/stats_json.h"

#include <fmt/format.h>

#include <cmath>

#include "runtime/observe/speculator_json.h"

namespace foretoken {
namespace {

namespace json = boost::json;

json::value number_or_null(double value) {
  return std::isfinite(value) ? json::value(value) : json::value(nullptr);
}

json::value interval_json(const std::optional<Interval>& i) {
  if (!i) return nullptr;
  return json::object{{"value", number_or_null(i->value)},
                      {"ci95", json::array{number_or_null(i->low), number_or_null(i->high)}},
                      {"rounds", i->rounds},
                      {"control_rounds", i->control_rounds}};
}

json::object net_speedup_json(const NetSpeedup& net) {
  json::object out{{"value", nullptr}, {"ci95", nullptr}};
  if (net.value) {
    out["value"] = number_or_null(net.value->value);
    out["ci95"] = json::array{number_or_null(net.value->low), number_or_null(net.value->high)};
  }
  out["windows"] = net.windows;
  out["plain_windows"] = net.plain_windows;
  out["plain_now"] = net.plain_now;
  out["definition"] =
      "decode time per token of plain serving (no speculation, no capture, trainer paused) over "
      "that with everything on, ratio at equal concurrency, 95 % interval; from windows of time "
      "drawn at random";
  return out;
}

json::object acceptance_json(const AcceptanceStats& a, bool positions) {
  json::object out{
      {"rounds", a.rounds},
      {"drafting_rounds", a.drafting_rounds},
      {"drafted", a.drafted},
      {"accepted", a.accepted},
      {"emitted", a.emitted},
      {"acceptance_length", a.acceptance_length()},
      {"draft_length", a.draft_length()},
      {"acceptance_rate",
       a.drafted ? static_cast<double>(a.accepted) / static_cast<double>(a.drafted) : 0.0}};
  if (positions) {
    int n = kMaxDraft;
    while (n > 0 && a.drafted_at[static_cast<std::size_t>(n - 1)] == 0) --n;
    json::array at;
    for (int i = 0; i < n; ++i) {
      auto index = static_cast<std::size_t>(i);
      at.push_back(json::object{
          {"position", i}, {"drafted", a.drafted_at[index]}, {"accepted", a.accepted_at[index]}});
    }
    out["per_position"] = std::move(at);
  }
  return out;
}

// Figures by label, or by version.
template <class Map, class Json>
json::object by(const Map& map, Json json_of) {
  json::object out;
  for (const auto& [key, value] : map) out[fmt::format("{}", key)] = json_of(value);
  return out;
}

json::object kv_json(const KvStats& kv) {
  return {{"pool_bytes", kv.pool_bytes},
          {"used_bytes", kv.used_bytes},
          {"occupancy", kv.occupancy()},
          {"cached_bytes", kv.cached_bytes},
          {"hot_pages", kv.hot_pages},
          {"sealed_pages", kv.sealed_pages},
          {"sealed_pages_total", kv.sealed_pages_total},
          {"int2_page_reads_total", kv.sealed_page_reads_total},
          {"cached_pages", kv.cached_pages},
          {"tails", kv.tails},
          {"tail_bytes", kv.tail_bytes},
          {"evicted_pages_total", kv.evicted_pages_total},
          {"evicted_tails_total", kv.evicted_tails_total},
          {"bytes_per_token_bf16", kv.bytes_per_token_bf16},
          {"bytes_per_token_sealed", kv.bytes_per_token_sealed}};
}

json::array verdicts_json(const std::vector<CandidateVerdict>& verdicts) {
  json::array out;
  for (const CandidateVerdict& verdict : verdicts) {
    json::object figures;
    for (const auto& [name, value] : verdict.figures) figures[name] = number_or_null(value);
    out.push_back(
        json::object{{"candidate", verdict.candidate},
                     {"version", verdict.version.value ? json::value(verdict.version.value)
                                                       : json::value(nullptr)},
                     {"unix_ms", verdict.unix_ms},
                     {"step", verdict.step},
                     {"requests", verdict.requests},
                     {"verdict", verdict.text},
                     {"figures", std::move(figures)}});
  }
  return out;
}

}  // namespace

json::object stats_json(const EngineStats& s, const LinkStats& link, const StatsContext& context) {
  const auto speedup = [](const Interval& interval) { return interval_json(interval); };
  const auto acceptance = [](const AcceptanceStats& a) { return acceptance_json(a, false); };
  const SpeculatorState& spec = link.speculator;
  json::array events;  // the newest; GET /v1/speculator has more
  constexpr std::size_t kEvents = 12;
  for (std::size_t i = spec.lineage.size() > kEvents ? spec.lineage.size() - kEvents : 0;
       i < spec.lineage.size(); ++i)
    events.push_back(spec.lineage[i]);
  json::array round_ms;
  for (double ms : s.round_ms_by_rows) round_ms.push_back(number_or_null(ms));
  return {
      {"schema", kStatsSchema},
      {"model", json::object{{"name", context.model},
                             {"fingerprint", context.fingerprint},
                             {"kv_cache_dtype", context.kv_mode},
                             {"isa", context.isa},
                             {"max_model_len", context.max_model_len}}},
      {"uptime_s", s.uptime_s},
      {"draining", context.draining},
      {"requests", json::object{{"running", s.requests_running},
                                {"waiting", s.requests_waiting},
                                {"finished", s.requests_finished},
                                {"aborted", s.requests_aborted},
                                {"rejected", s.requests_rejected},
                                {"preemptions", s.preemptions}}},
      {"tokens", json::object{{"prompt", s.prompt_tokens},
                              {"generated", s.generated_tokens},
                              {"decode_per_s_last_minute", s.decode_tokens_per_s_last_minute}}},
      {"prefix_cache", json::object{{"queried_tokens", s.prefix_cache_queries},
                                    {"hit_tokens", s.prefix_cache_hits}}},
      {"speedup",
       json::object{
           {"overall", interval_json(s.speedup)},
           {"last_minute", interval_json(s.speedup_last_minute)},
           {"by_domain", by(s.speedup_by_domain, speedup)},
           {"by_kind", by(s.speedup_by_kind, speedup)},
           {"by_version", by(s.speedup_by_version, speedup)},
           {"definition",
            "decode time per token without speculation / with it, from control rounds of the "
            "same requests on this machine; ratio at equal concurrency, 95 % interval"}}},
      {"net_speedup", net_speedup_json(s.net_speedup)},
      {"acceptance", json::object{{"overall", acceptance_json(s.acceptance, true)},
                                  {"last_minute", acceptance_json(s.acceptance_last_minute, true)},
                                  {"by_domain", by(s.by_domain, acceptance)},
                                  {"by_kind", by(s.by_kind, acceptance)},
                                  {"by_version", by(s.by_version, acceptance)},
                                  {"definition",
                                   "acceptance_length = 1 + accepted / drafting_rounds; "
                                   "draft_length = drafted / drafting_rounds. rounds: decode "
                                   "rounds of choices, one choice in one round, control rounds and "
                                   "plain windows included; drafting_rounds: those with a draft"}}},
      {"rounds", json::object{{"engine", s.engine_rounds},
                              {"control", s.control_rounds},
                              {"ms_by_rows", std::move(round_ms)}}},
      {"speculator",
       json::object{
           {"version", s.version.value},
           {"age_s", s.version_age_s},
           {"swaps", s.swaps},
           {"swap_pause_last_ms", s.swap_pause_last_ms},
           {"swap_pause_p50_ms", s.swap_pause_p50_ms},
           {"swap_pause_p99_ms", s.swap_pause_p99_ms},
           {"swap_pause_max_ms", s.swap_pause_max_ms},
           {"kind", spec.kind},
           {"frozen", spec.frozen},
           {"canary", canary_json(spec)},
           {"previous", spec.previous ? json::value(spec.previous->value) : json::value(nullptr)},
           {"promoted", spec.promoted},
           {"rolled_back", spec.rolled_back},
           {"refused", spec.refused},
           {"last_event", spec.lineage.empty() ? json::value(nullptr) : spec.lineage.back()}}},
      {"kv", kv_json(s.kv)},
      {"draft_kv", s.draft_kv.pool_bytes ? json::value(kv_json(s.draft_kv)) : json::value(nullptr)},
      {"traffic_store",
       json::object{{"entries", s.traffic_store_entries}, {"bytes", s.traffic_store_bytes}}},
      {"traces", json::object{{"sent", link.traces_sent},
                              {"dropped", json::value_from(link.traces_dropped)},
                              {"ended_by_plain_window", s.traces_plain_window}}},
      {"bundles", json::object{{"received", link.bundles_received},
                               {"rejected", json::value_from(link.bundles_rejected)}}},
      {"trainer",
       json::object{
           {"connected", link.trainer_connected},
           {"peers_refused", link.peers_refused},
           {"step", link.trainer_step ? json::value(*link.trainer_step) : json::value(nullptr)},
           {"loss", link.trainer_loss ? number_or_null(*link.trainer_loss) : json::value(nullptr)},
           {"verdict", link.trainer_verdict.empty() ? json::value(nullptr)
                                                    : json::value(link.trainer_verdict)},
           {"verdicts", verdicts_json(link.trainer_verdicts)}}},
  };
}

}  // namespace foretoken
