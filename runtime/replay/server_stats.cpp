#include "runtime/replay/server_stats.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/json/json_at.h"

namespace foretoken {
namespace {

namespace json = boost::json;

std::int64_t count_at(const json::value& stats, std::string_view at) {
  return static_cast<std::int64_t>(number_at(stats, at).value_or(0));
}

std::optional<Interval> interval(const json::value& speedup) {
  const auto value = number_at(speedup, "/value"), low = number_at(speedup, "/ci95/0"),
             high = number_at(speedup, "/ci95/1");
  if (!value || !low || !high) return std::nullopt;  // none yet, or an older server
  return Interval{*value, *low, *high, count_at(speedup, "/rounds"),
                  count_at(speedup, "/control_rounds")};
}

// Names and reasons come from afar: nothing of them steers the terminal.
std::string text_at(const json::value& entry, std::string_view at) {
  std::string out(string_at(entry, at));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return out.substr(0, 200);
}

std::vector<SpeculatorEvent> events_of(const json::value& stats) {
  std::vector<SpeculatorEvent> events;
  const auto each = [&](std::string_view list, std::string_view number, auto text_of) {
    const json::array* entries = json_at(stats, list).if_array();
    for (std::size_t i = 0; entries && i < entries->size(); ++i) {
      const json::value& e = (*entries)[i];
      if (number_at(e, number) && number_at(e, "/unix_ms"))
        events.push_back({count_at(e, "/unix_ms"), text_of(e, count_at(e, number))});
    }
  };
  each("/trainer/verdicts", "/candidate", [](const json::value& e, std::int64_t candidate) {
    const std::string version =
        number_at(e, "/version") ? fmt::format(" (v{})", count_at(e, "/version")) : "";
    return fmt::format("candidate {}{}: {}", candidate, version, text_at(e, "/verdict"));
  });
  each("/speculator/events", "/version", [](const json::value& e, std::int64_t version) {
    const std::string reason = text_at(e, "/reason");
    return fmt::format("v{} {}{}{}", version, text_at(e, "/event"), reason.empty() ? "" : ": ",
                       reason);
  });
  std::stable_sort(events.begin(), events.end(),
                   [](const auto& a, const auto& b) { return a.unix_ms < b.unix_ms; });
  return events;
}

StatsSample sample_of(const json::value& stats, double at_s) {
  StatsSample s;
  s.at_s = at_s;
  s.speedup = interval(json_at(stats, "/speedup/overall"));
  s.speedup_last_minute = interval(json_at(stats, "/speedup/last_minute"));
  s.acceptance_length = number_at(stats, "/acceptance/overall/acceptance_length").value_or(0);
  s.acceptance_length_last_minute =
      number_at(stats, "/acceptance/last_minute/acceptance_length").value_or(0);
  s.decode_tokens_per_s = number_at(stats, "/tokens/decode_per_s_last_minute").value_or(0);
  s.drafting_rounds = count_at(stats, "/acceptance/overall/drafting_rounds");
  s.accepted = count_at(stats, "/acceptance/overall/accepted");
  s.version = static_cast<std::uint64_t>(count_at(stats, "/speculator/version"));
  s.swaps = count_at(stats, "/speculator/swaps");
  s.running = count_at(stats, "/requests/running");
  if (const auto net = number_at(stats, "/net_speedup/value")) s.net_speedup.emplace().value = *net;
  s.events = events_of(stats);
  if (number_at(stats, "/trainer/step")) s.trainer_step = count_at(stats, "/trainer/step");
  return s;
}

}  // namespace

std::optional<json::value> get_json(HttpClient& client, const std::string& path) {
  std::string body;
  const auto response = client.call(path, nullptr, [&](std::string_view bytes) { body += bytes; });
  if (!response || response->status != 200) return std::nullopt;
  json::error_code ec;
  json::value value = json::parse(body, ec);
  if (ec || !value.is_object()) return std::nullopt;
  return value;
}

std::optional<StatsSample> read_stats(HttpClient& client, double at_s) {
  const auto stats = get_json(client, "/stats");
  if (!stats) return std::nullopt;
  return sample_of(*stats, at_s);
}

StatsMark mark_stats(HttpClient& client, double at_s) {
  StatsMark mark;
  mark.at_s = at_s;
  auto stats = get_json(client, "/stats?sums=1");
  if (!stats) return mark;
  mark.sample = sample_of(*stats, at_s);
  if (auto sums = SpeedupSums::from_text(string_at(*stats, "/speedup_sums")))
    mark.sums = std::move(*sums);
  mark.whole = std::move(stats->get_object());
  mark.whole.erase("speedup_sums");
  return mark;
}

std::optional<Interval> speedup_between(const StatsMark& from, const StatsMark& to) {
  if (!from.sums || !to.sums) return std::nullopt;
  return (*to.sums - *from.sums).estimate();
}

json::value to_json(const std::optional<Interval>& i) {
  if (!i) return nullptr;
  return json::object{{"value", i->value},
                      {"ci95", json::array{i->low, i->high}},
                      {"rounds", i->rounds},
                      {"control_rounds", i->control_rounds}};
}

json::object to_json(const StatsSample& s) {
  return {{"at_s", s.at_s},
          {"speedup", to_json(s.speedup)},
          {"speedup_last_minute", to_json(s.speedup_last_minute)},
          {"acceptance_length", s.acceptance_length},
          {"acceptance_length_last_minute", s.acceptance_length_last_minute},
          {"decode_tokens_per_s", s.decode_tokens_per_s},
          {"version", s.version},
          {"swaps", s.swaps},
          {"trainer_step", s.trainer_step ? json::value(*s.trainer_step) : json::value(nullptr)}};
}

}  // namespace foretoken
