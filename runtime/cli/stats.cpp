// foretoken stats: a server's figures in the terminal, once or refreshed.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <fstream>
#include <thread>

#include "runtime/cli/command.h"
#include "runtime/flags/flags.h"
#include "runtime/json/json_at.h"
#include "runtime/replay/http_client.h"

namespace foretoken {
namespace {

namespace json = boost::json;

std::atomic<bool> stop_requested{false};

// The figure there, "-" where there is none.
std::string figure(const json::value& root, std::string_view at, int digits = 0, double unit = 1) {
  const auto value = number_at(root, at);
  return value ? fmt::format("{:.{}f}", unit * *value, digits) : "-";
}

// As the document has it.
std::string raw(const json::value& root, std::string_view at) {
  return json::serialize(json_at(root, at));
}

bool yes(const json::value& root, std::string_view at) {
  return json_at(root, at) == json::value(true);
}

std::string with_interval(const json::value& v) {
  return fmt::format("{} [{}, {}]", figure(v, "/value", 2), figure(v, "/ci95/0", 2),
                     figure(v, "/ci95/1", 2));
}

std::string interval(const json::value& v) {
  if (!v.is_object()) return "not enough control rounds yet";
  if (!json_at(v, "/ci95").is_array()) return figure(v, "/value", 2);
  return fmt::format("{}, {} rounds, {} without speculation", with_interval(v),
                     figure(v, "/rounds"), figure(v, "/control_rounds"));
}

std::string net_interval(const json::value& v) {
  if (!json_at(v, "/ci95").is_array())
    return fmt::format("not enough windows of plain serving yet ({})", figure(v, "/plain_windows"));
  return fmt::format("{}, {} windows, {} of plain serving", with_interval(v), figure(v, "/windows"),
                     figure(v, "/plain_windows"));
}

// Control characters never reach the terminal: names come from clients.
std::string printable(std::string_view text) {
  std::string out;
  for (char c : text) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return out;
}
std::string text(const json::value& root, std::string_view at) {
  const json::value& value = json_at(root, at);
  return value.is_string() ? printable(value.get_string()) : "-";
}

std::string counts(const json::value& map) {
  if (!map.is_object() || map.get_object().empty()) return "0";
  std::string out;
  for (const auto& [key, value] : map.get_object())
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", json::serialize(value), printable(key));
  return out;
}

void acceptance_table(std::string& out, std::string_view title, const json::value& stats) {
  const json::value& map = json_at(stats, fmt::format("/acceptance/by_{}", title));
  const json::value& speedups = json_at(stats, fmt::format("/speedup/by_{}", title));
  if (!map.is_object() || map.get_object().empty()) return;
  out += fmt::format("\n{:<20} {:>9} {:>11} {:>7} {:>9}  {}\n",
                     title == "kind" ? "speculator" : title, "rounds", "acceptance", "draft",
                     "accepted", speedups.is_object() ? "speedup" : "");
  for (const auto& [key, v] : map.get_object()) {
    const json::value* speedup =
        speedups.is_object() ? speedups.get_object().if_contains(key) : nullptr;
    out += fmt::format("{:<20} {:>9} {:>11} {:>7} {:>7} %  {}\n",
                       printable(std::string_view(key).substr(0, 20)), figure(v, "/rounds"),
                       figure(v, "/acceptance_length", 2), figure(v, "/draft_length", 1),
                       figure(v, "/acceptance_rate", 0, 100), speedup ? interval(*speedup) : "");
  }
}

std::string acceptance(const json::value& a) {
  std::string positions;
  if (const json::array* per = json_at(a, "/per_position").if_array())
    for (const json::value& p : *per) {
      const auto accepted = number_at(p, "/accepted"), drafted = number_at(p, "/drafted");
      positions += accepted && drafted.value_or(0) > 0
                       ? fmt::format(" {:.0f}", 100 * *accepted / *drafted)
                       : " -";
    }
  return fmt::format("length {}, drafts of {}, {} % accepted; by position:{} %",
                     figure(a, "/acceptance_length", 2), figure(a, "/draft_length", 1),
                     figure(a, "/acceptance_rate", 0, 100), positions);
}

std::string render(const json::value& s) {
  std::string out;
  const auto line = [&]<class... Args>(std::string_view name, fmt::format_string<Args...> format,
                                       Args&&... args) {
    out += fmt::format("{:<18} {}\n", name, fmt::format(format, std::forward<Args>(args)...));
  };
  line("model", "{} ({}, KV {}), up {} s{}", text(s, "/model/name"), text(s, "/model/isa"),
       text(s, "/model/kv_cache_dtype"), figure(s, "/uptime_s"),
       yes(s, "/draining") ? ", shutting down" : "");
  line("requests", "{} running, {} waiting, {} finished, {} aborted, {} refused",
       raw(s, "/requests/running"), raw(s, "/requests/waiting"), raw(s, "/requests/finished"),
       raw(s, "/requests/aborted"), raw(s, "/requests/rejected"));
  line("tokens", "{} prompt, {} generated, {} per second in the last minute",
       raw(s, "/tokens/prompt"), raw(s, "/tokens/generated"),
       figure(s, "/tokens/decode_per_s_last_minute", 1));
  line("speedup", "{}", interval(json_at(s, "/speedup/overall")));
  line("  last minute", "{}", interval(json_at(s, "/speedup/last_minute")));
  line("net speedup", "{}", net_interval(json_at(s, "/net_speedup")));
  line("acceptance", "{}", acceptance(json_at(s, "/acceptance/overall")));
  line("  last minute", "{}", acceptance(json_at(s, "/acceptance/last_minute")));
  line("KV cache", "{} % of {} MiB, {} bytes a token sealed ({} in bf16)",
       figure(s, "/kv/occupancy", 1, 100), figure(s, "/kv/pool_bytes", 0, 1.0 / 1048576),
       figure(s, "/kv/bytes_per_token_sealed"), figure(s, "/kv/bytes_per_token_bf16"));
  line("speculator", "version {} ({}){}, {} s old", raw(s, "/speculator/version"),
       text(s, "/speculator/kind"), yes(s, "/speculator/frozen") ? ", frozen" : "",
       figure(s, "/speculator/age_s"));
  if (const json::value& canary = json_at(s, "/speculator/canary"); canary.is_object())
    line("  canary", "version {}, {} requests judged, {} % predicted speed",
         raw(canary, "/version"), figure(canary, "/requests_judged"),
         number_at(canary, "/replay/gain")
             ? fmt::format("{:+.1f}", 100 * *number_at(canary, "/replay/gain"))
             : "-");
  line("  versions", "{} promoted, {} rolled back, {} refused; bundles refused: {}",
       figure(s, "/speculator/promoted"), figure(s, "/speculator/rolled_back"),
       figure(s, "/speculator/refused"), counts(json_at(s, "/bundles/rejected")));
  line("  swaps", "{}, pause p50 {} ms, p99 {} ms, longest {} ms", raw(s, "/speculator/swaps"),
       figure(s, "/speculator/swap_pause_p50_ms", 3), figure(s, "/speculator/swap_pause_p99_ms", 3),
       figure(s, "/speculator/swap_pause_max_ms", 3));
  line("traces", "{} sent, dropped: {}", raw(s, "/traces/sent"),
       counts(json_at(s, "/traces/dropped")));
  line("trainer", "{}, step {}, loss {}, verdict {}",
       yes(s, "/trainer/connected") ? "connected" : "not connected", raw(s, "/trainer/step"),
       figure(s, "/trainer/loss", 4), text(s, "/trainer/verdict"));
  for (const char* by : {"domain", "kind", "version"}) acceptance_table(out, by, s);
  return out;
}

int stats_main(int argc, char** argv) {
  Flags flags(argv[0], "Shows a running server's statistics.");
  std::string url = "http://127.0.0.1:8080", api_key_file;
  bool watch = false, as_json = false;
  double every_s = 2;
  flags.option("url", url, "the server");
  flags.option("api-key-file", api_key_file, "a file whose first key is sent");
  flags.number("interval", every_s, 0.1, 3600.0, "seconds between refreshes");
  flags.toggle("watch", watch, "refresh until Ctrl-C");
  flags.toggle("json", as_json, "the JSON itself, one line a refresh");
  if (auto status = flags.parse(argc, argv)) return *status;
  std::string key;
  if (!api_key_file.empty()) {
    std::ifstream file(api_key_file);
    if (!file)
      return exit_status(argv[0],
                         Error{ErrorCode::kNotFound,
                               fmt::format("--api-key-file {}: cannot be read", api_key_file)});
    while (std::getline(file, key) && (key.empty() || key[0] == '#')) {
    }
  }
  auto parsed = ServerUrl::parse(url);
  if (!parsed) return exit_status(argv[0], parsed.error());
  signal(SIGINT, [](int) { stop_requested = true; });
  signal(SIGTERM, [](int) { stop_requested = true; });
  HttpClient client(*parsed, key, 10, &stop_requested);
  const bool screen = watch && !as_json && isatty(1);
  do {
    std::string body;
    auto response = client.call("/stats", nullptr, [&](std::string_view bytes) { body += bytes; });
    if (stop_requested) break;
    std::string problem;
    if (!response) {
      problem = fmt::format("{}: {}\n", url, response.error().message);
    } else {
      json::error_code code;
      json::value value = json::parse(body, code);
      if (code)
        problem = fmt::format("{}: HTTP {}, not JSON\n", url, response->status);
      else if (response->status != 200)
        problem =
            fmt::format("{}: HTTP {}: {}\n", url, response->status, text(value, "/error/message"));
      else {
        fmt::print("{}{}", screen ? "\x1b[H\x1b[2J" : "", as_json ? body + "\n" : render(value));
        std::fflush(stdout);
      }
    }
    if (!problem.empty()) {
      fmt::print(stderr, "{}", problem);
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
