#include "runtime/replay/server_stats.h"

#include <algorithm>

#include "runtime/observe/speedup_text.h"

namespace foretoken {
namespace {

namespace json = boost::json;

std::optional<json::object> get_object(HttpClient& client, const std::string& path) {
  std::string body;
  const auto response = client.call(path, nullptr, [&](std::string_view bytes) { body += bytes; });
  if (!response || response->status != 200) return std::nullopt;
  json::error_code ec;
  json::value value = json::parse(body, ec);
  if (ec || !value.is_object()) return std::nullopt;
  return std::move(value.get_object());
}

// A number at a JSON pointer; nullopt where there is none.
std::optional<double> number(const json::object& from,
                             std::initializer_list<std::string_view> path) {
  const json::object* o = &from;
  const json::value* v = nullptr;
  for (const std::string_view key : path) {
    if (v) o = v->if_object();
    if (!o) return std::nullopt;
    v = o->if_contains(key);
    if (!v) return std::nullopt;
  }
  if (!v || !v->is_number()) return std::nullopt;
  return v->to_number<double>();
}

std::optional<Interval> interval(const json::object& stats, std::string_view name) {
  const auto value = number(stats, {"speedup", name, "value"});
  if (!value) return std::nullopt;
  Interval out;
  out.value = out.low = out.high = *value;
  try {
    const json::array& ci = stats.at("speedup").at(name).at("ci95").as_array();
    out.low = ci.at(0).to_number<double>();
    out.high = ci.at(1).to_number<double>();
  } catch (const std::exception&) {  // no interval: an older server
    return std::nullopt;
  }
  out.rounds = static_cast<std::int64_t>(number(stats, {"speedup", name, "rounds"}).value_or(0));
  out.control_rounds =
      static_cast<std::int64_t>(number(stats, {"speedup", name, "control_rounds"}).value_or(0));
  return out;
}

std::string safe_text_at(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  if (!v || !v->is_string()) return "";
  // Names and reasons come from afar: nothing of them steers the terminal.
  std::string out(v->get_string());
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return out.substr(0, 200);
}

std::vector<SpeculatorEvent> events_of(const json::object& stats) {
  std::vector<SpeculatorEvent> events;
  const auto each = [&](std::string_view group, std::string_view list, auto visit) {
    const json::value* g = stats.if_contains(group);
    const json::object* o = g ? g->if_object() : nullptr;
    const json::value* l = o ? o->if_contains(list) : nullptr;
    if (!l || !l->is_array()) return;
    for (const json::value& entry : l->get_array())
      if (const json::object* e = entry.if_object()) visit(*e);
  };
  each("trainer", "verdicts", [&](const json::object& e) {
    const auto candidate = number(e, {"candidate"}), time = number(e, {"unix_ms"});
    const auto version = number(e, {"version"});
    if (!candidate || !time) return;
    std::string text = "candidate " + std::to_string(static_cast<std::int64_t>(*candidate));
    if (version) text += " (v" + std::to_string(static_cast<std::int64_t>(*version)) + ")";
    events.push_back({static_cast<std::int64_t>(*time), text + ": " + safe_text_at(e, "verdict")});
  });
  each("speculator", "events", [&](const json::object& e) {
    const auto version = number(e, {"version"}), time = number(e, {"unix_ms"});
    if (!version || !time) return;
    const std::string reason = safe_text_at(e, "reason");
    events.push_back({static_cast<std::int64_t>(*time),
                      "v" + std::to_string(static_cast<std::int64_t>(*version)) + " " +
                          safe_text_at(e, "event") + (reason.empty() ? "" : ": " + reason)});
  });
  std::stable_sort(events.begin(), events.end(),
                   [](const auto& a, const auto& b) { return a.unix_ms < b.unix_ms; });
  return events;
}

StatsSample sample_of(const json::object& stats, double at_s) {
  const auto count = [&](std::initializer_list<std::string_view> path) {
    return static_cast<std::int64_t>(number(stats, path).value_or(0));
  };
  StatsSample s;
  s.at_s = at_s;
  s.speedup = interval(stats, "overall");
  s.speedup_last_minute = interval(stats, "last_minute");
  s.acceptance_length = number(stats, {"acceptance", "overall", "acceptance_length"}).value_or(0);
  s.acceptance_length_last_minute =
      number(stats, {"acceptance", "last_minute", "acceptance_length"}).value_or(0);
  s.decode_tokens_per_s = number(stats, {"tokens", "decode_per_s_last_minute"}).value_or(0);
  s.drafting_rounds = count({"acceptance", "overall", "drafting_rounds"});
  s.accepted = count({"acceptance", "overall", "accepted"});
  s.version = static_cast<std::uint64_t>(count({"speculator", "version"}));
  s.swaps = count({"speculator", "swaps"});
  s.running = count({"requests", "running"});
  if (const auto net = number(stats, {"net_speedup", "value"})) {
    Interval i;
    i.value = *net;
    s.net_speedup = i;
  }
  s.events = events_of(stats);
  if (const auto step = number(stats, {"trainer", "step"}))
    s.trainer_step = static_cast<std::int64_t>(*step);
  return s;
}

}  // namespace

std::optional<StatsSample> read_stats(HttpClient& client, double at_s) {
  const auto stats = get_object(client, "/stats");
  if (!stats) return std::nullopt;
  return sample_of(*stats, at_s);
}

std::optional<json::object> read_speculator(HttpClient& client) {
  return get_object(client, "/v1/speculator");
}

StatsMark mark_stats(HttpClient& client, double at_s) {
  StatsMark mark;
  mark.at_s = at_s;
  auto stats = get_object(client, "/stats?sums=1");
  if (!stats) return mark;
  mark.sample = sample_of(*stats, at_s);
  if (const json::value* text = stats->if_contains("speedup_sums"); text && text->is_string())
    if (auto sums = speedup_sums_from_text(text->get_string()); sums) mark.sums = std::move(*sums);
  stats->erase("speedup_sums");
  mark.whole = std::move(*stats);
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
