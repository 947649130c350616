// foretoken stats: a server's figures in the terminal, once or refreshed.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <cmath>
#include <fstream>
#include <thread>

#include "runtime/cli/command.h"
#include "runtime/flags/flags.h"
#include "runtime/replay/http_client.h"

namespace foretoken {
namespace {

namespace json = boost::json;

std::atomic<bool> stop_requested{false};

// A path like "kv.occupancy" into the document; null if it is not there.
const json::value& at(const json::value& root, std::string_view path) {
  static const json::value kNull;
  const json::value* here = &root;
  while (!path.empty()) {
    std::size_t dot = path.find('.');
    std::string_view name = path.substr(0, dot);
    path = dot == std::string_view::npos ? std::string_view() : path.substr(dot + 1);
    if (!here->is_object()) return kNull;
    here = here->get_object().if_contains(json::string_view(name.data(), name.size()));
    if (!here) return kNull;
  }
  return *here;
}

double number(const json::value& root, std::string_view path) {
  const json::value& v = at(root, path);
  return v.is_number() ? v.to_number<double>() : std::nan("");
}

std::string shown(double value, const char* format = "{:.2f}") {
  return std::isnan(value) ? "-" : fmt::format(fmt::runtime(format), value);
}

std::string interval(const json::value& v) {
  if (!v.is_object()) return "not enough control rounds yet";
  const json::value& ci = at(v, "ci95");
  if (!ci.is_array() || ci.get_array().size() != 2) return shown(number(v, "value"));
  auto end = [&](std::size_t i) {
    return ci.get_array()[i].is_number() ? ci.get_array()[i].to_number<double>() : std::nan("");
  };
  return fmt::format("{} [{}, {}], {} rounds, {} without speculation", shown(number(v, "value")),
                     shown(end(0)), shown(end(1)), shown(number(v, "rounds"), "{:.0f}"),
                     shown(number(v, "control_rounds"), "{:.0f}"));
}

std::string net_interval(const json::value& v) {
  const json::value& ci = at(v, "ci95");
  if (!ci.is_array() || ci.get_array().size() != 2)
    return fmt::format("not enough windows of plain serving yet ({})",
                       shown(number(v, "plain_windows"), "{:.0f}"));
  auto end = [&](std::size_t i) {
    return ci.get_array()[i].is_number() ? ci.get_array()[i].to_number<double>() : std::nan("");
  };
  return fmt::format("{} [{}, {}], {} windows, {} of plain serving", shown(number(v, "value")),
                     shown(end(0)), shown(end(1)), shown(number(v, "windows"), "{:.0f}"),
                     shown(number(v, "plain_windows"), "{:.0f}"));
}

// Control characters never reach the terminal: names come from clients.
std::string printable(std::string_view text) {
  std::string out;
  for (char c : text) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return out;
}
std::string printable(const json::value& value) {
  return value.is_string() ? printable(std::string_view(value.get_string())) : "-";
}

std::string counts(const json::value& map) {
  if (!map.is_object() || map.get_object().empty()) return "0";
  std::string out;
  for (const auto& entry : map.get_object())
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", json::serialize(entry.value()),
                       printable(std::string_view(entry.key().data(), entry.key().size())));
  return out;
}

void acceptance_table(std::string& out, std::string_view title, const json::value& map,
                      const json::value& speedups) {
  if (!map.is_object() || map.get_object().empty()) return;
  out += fmt::format("\n{:<20} {:>9} {:>11} {:>7} {:>9}  {}\n", title, "rounds", "acceptance",
                     "draft", "accepted", speedups.is_object() ? "speedup" : "");
  for (const auto& entry : map.get_object()) {
    std::string_view key(entry.key().data(), entry.key().size());
    const json::value& v = entry.value();
    std::string speedup;
    if (speedups.is_object())
      if (const json::value* found = speedups.get_object().if_contains(entry.key()))
        speedup = interval(*found);
    out += fmt::format("{:<20} {:>9} {:>11} {:>7} {:>7} %  {}\n", printable(key.substr(0, 20)),
                       shown(number(v, "rounds"), "{:.0f}"), shown(number(v, "acceptance_length")),
                       shown(number(v, "draft_length"), "{:.1f}"),
                       shown(100 * number(v, "acceptance_rate"), "{:.0f}"), speedup);
  }
}

std::string render(const json::value& s) {
  std::string out;
  auto line = [&](std::string_view name, const std::string& text) {
    out += fmt::format("{:<18} {}\n", name, text);
  };
  line("model", fmt::format("{} ({}, KV {}), up {} s{}", printable(at(s, "model.name")),
                            printable(at(s, "model.isa")), printable(at(s, "model.kv_cache_dtype")),
                            shown(number(s, "uptime_s"), "{:.0f}"),
                            at(s, "draining") == json::value(true) ? ", shutting down" : ""));
  line("requests", fmt::format("{} running, {} waiting, {} finished, {} aborted, {} refused",
                               json::serialize(at(s, "requests.running")),
                               json::serialize(at(s, "requests.waiting")),
                               json::serialize(at(s, "requests.finished")),
                               json::serialize(at(s, "requests.aborted")),
                               json::serialize(at(s, "requests.rejected"))));
  line("tokens", fmt::format("{} prompt, {} generated, {} per second in the last minute",
                             json::serialize(at(s, "tokens.prompt")),
                             json::serialize(at(s, "tokens.generated")),
                             shown(number(s, "tokens.decode_per_s_last_minute"), "{:.1f}")));
  line("speedup", interval(at(s, "speedup.overall")));
  line("  last minute", interval(at(s, "speedup.last_minute")));
  line("net speedup", net_interval(at(s, "net_speedup")));
  for (auto [name, path] : {std::pair{"acceptance", "acceptance.overall"},
                            std::pair{"  last minute", "acceptance.last_minute"}}) {
    const json::value& a = at(s, path);
    std::string positions;
    if (const json::value& per = at(a, "per_position"); per.is_array())
      for (const json::value& p : per.get_array())
        positions += " " + shown(100 * number(p, "accepted") / number(p, "drafted"), "{:.0f}");
    line(name, fmt::format("length {}, drafts of {}, {} % accepted; by position:{} %",
                           shown(number(a, "acceptance_length")),
                           shown(number(a, "draft_length"), "{:.1f}"),
                           shown(100 * number(a, "acceptance_rate"), "{:.0f}"), positions));
  }
  line("KV cache", fmt::format("{} % of {} MiB, {} bytes a token sealed ({} in bf16)",
                               shown(100 * number(s, "kv.occupancy"), "{:.1f}"),
                               shown(number(s, "kv.pool_bytes") / 1048576, "{:.0f}"),
                               shown(number(s, "kv.bytes_per_token_sealed"), "{:.0f}"),
                               shown(number(s, "kv.bytes_per_token_bf16"), "{:.0f}")));
  line("speculator",
       fmt::format("version {} ({}){}, {} s old", json::serialize(at(s, "speculator.version")),
                   printable(at(s, "speculator.kind")),
                   at(s, "speculator.frozen") == json::value(true) ? ", frozen" : "",
                   shown(number(s, "speculator.age_s"), "{:.0f}")));
  if (const json::value& canary = at(s, "speculator.canary"); canary.is_object())
    line("  canary", fmt::format("version {}, {} requests judged, {} % predicted speed",
                                 json::serialize(at(canary, "version")),
                                 shown(number(canary, "requests_judged"), "{:.0f}"),
                                 shown(100 * number(canary, "replay.gain"), "{:+.1f}")));
  line("  versions", fmt::format("{} promoted, {} rolled back, {} refused; bundles refused: {}",
                                 shown(number(s, "speculator.promoted"), "{:.0f}"),
                                 shown(number(s, "speculator.rolled_back"), "{:.0f}"),
                                 shown(number(s, "speculator.refused"), "{:.0f}"),
                                 counts(at(s, "bundles.rejected"))));
  line("  swaps", fmt::format("{}, pause p50 {} ms, p99 {} ms, longest {} ms",
                              json::serialize(at(s, "speculator.swaps")),
                              shown(number(s, "speculator.swap_pause_p50_ms"), "{:.3f}"),
                              shown(number(s, "speculator.swap_pause_p99_ms"), "{:.3f}"),
                              shown(number(s, "speculator.swap_pause_max_ms"), "{:.3f}")));
  line("traces", fmt::format("{} sent, dropped: {}", json::serialize(at(s, "traces.sent")),
                             counts(at(s, "traces.dropped"))));
  line(
      "trainer",
      fmt::format("{}, step {}, loss {}, verdict {}",
                  at(s, "trainer.connected") == json::value(true) ? "connected" : "not connected",
                  json::serialize(at(s, "trainer.step")),
                  shown(number(s, "trainer.loss"), "{:.4f}"), printable(at(s, "trainer.verdict"))));
  acceptance_table(out, "domain", at(s, "acceptance.by_domain"), at(s, "speedup.by_domain"));
  acceptance_table(out, "speculator", at(s, "acceptance.by_kind"), at(s, "speedup.by_kind"));
  acceptance_table(out, "version", at(s, "acceptance.by_version"), at(s, "speedup.by_version"));
  return out;
}

int stats_main(int argc, char** argv) {
  Flags flags("foretoken stats", "Shows a running server's statistics.");
  std::string url = "http://127.0.0.1:8080", api_key_file;
  bool watch = false, as_json = false;
  double every_s = 2;
  flags.option("url", url, "the server");
  flags.option("api-key-file", api_key_file, "a file whose first key is sent");
  flags.option("interval", every_s, "seconds between refreshes")->check(CLI::Range(0.1, 3600.0));
  flags.toggle("watch", watch, "refresh until Ctrl-C");
  flags.toggle("json", as_json, "the JSON itself, one line a refresh");
  if (auto status = flags.parse(argc, argv)) return *status;
  auto fail = [](const std::string& message) {
    fmt::print(stderr, "foretoken stats: {}\n", message);
    return 1;
  };
  std::string key;
  if (!api_key_file.empty()) {
    std::ifstream file(api_key_file);
    if (!file) return fail(fmt::format("--api-key-file {}: cannot be read", api_key_file));
    while (std::getline(file, key) && (key.empty() || key[0] == '#')) {
    }
  }
  auto parsed = ServerUrl::parse(url);
  if (!parsed) return fail(parsed.error().message);
  signal(SIGINT, [](int) { stop_requested = true; });
  signal(SIGTERM, [](int) { stop_requested = true; });
  HttpClient client(*parsed, key, 10, &stop_requested);
  const bool screen = watch && !as_json && isatty(1);
  do {
    std::string body;
    auto response = client.call("/stats", nullptr, [&](std::string_view bytes) { body += bytes; });
    if (stop_requested) break;
    std::string text;
    if (!response) {
      text = fmt::format("{}: {}\n", url, response.error().message);
    } else {
      json::error_code code;
      json::value value = json::parse(body, code);
      if (code)
        text = fmt::format("{}: HTTP {}, not JSON\n", url, response->status);
      else if (response->status != 200)
        text = fmt::format("{}: HTTP {}: {}\n", url, response->status,
                           printable(at(value, "error.message")));
      else {
        fmt::print("{}{}", screen ? "\x1b[H\x1b[2J" : "", as_json ? body + "\n" : render(value));
        std::fflush(stdout);
      }
    }
    if (!text.empty()) {
      fmt::print(stderr, "{}", text);
      if (!watch) return 1;  // --watch goes on: the server may come back
    }
    for (double waited = 0; watch && waited < every_s && !stop_requested; waited += 0.05)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
  } while (watch && !stop_requested);
  return 0;
}

const Subcommand kStats{"stats", "show a running server's statistics", stats_main, 20};

}  // namespace
}  // namespace foretoken
