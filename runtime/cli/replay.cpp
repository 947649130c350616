// foretoken replay LOG --url URL: sends a traffic log to a server and measures what its clients
// would see.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "runtime/cli/command.h"
#include "runtime/flags/flags.h"
#include "runtime/json/json_at.h"
#include "runtime/replay/player.h"
#include "runtime/replay/summary.h"

namespace foretoken {
namespace {

namespace json = boost::json;

std::atomic<bool> g_stop{false};
// The first Ctrl-C ends the replay and still reports; the second ends the process.
void on_signal(int) {
  if (g_stop.exchange(true)) std::_Exit(130);
}

std::string clock_text(double seconds) {
  const int s = static_cast<int>(std::max(0.0, seconds));
  return fmt::format("{}:{:02d}", s / 60, s % 60);
}

// One line on a terminal, rewritten in place; in a log file, a line every ten seconds.
class ProgressLine {
 public:
  explicit ProgressLine(double limit_s) : limit_s_(limit_s), terminal_(::isatty(STDERR_FILENO)) {}

  void show(const ReplayProgress& p) {
    if (p.stats) show_events(p.stats->events);
    if (!terminal_ && p.elapsed_s - shown_s_ < 10 && p.phase == phase_) return;
    shown_s_ = p.elapsed_s;
    phase_ = p.phase;
    std::string line = text(p);
    if (terminal_) {
      winsize size{};
      const std::size_t columns =
          ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 100;
      if (line.size() >= columns) line.resize(columns - 1);
      fmt::print(stderr, "\r\x1b[K{}", line);
      open_ = true;
    } else {
      fmt::print(stderr, "{}\n", line);
    }
    std::fflush(stderr);
  }
  void end() {
    if (open_) fmt::print(stderr, "\n");
    open_ = false;
  }

 private:
  // Versions as they are judged, each once, above the line. What was before this replay is not
  // shown.
  void show_events(const std::vector<SpeculatorEvent>& events) {
    const bool first = !events_seen_;
    events_seen_ = true;
    for (const SpeculatorEvent& e : events) {
      if (std::find(shown_.begin(), shown_.end(), e) != shown_.end()) continue;
      shown_.push_back(e);
      if (first) continue;
      fmt::print(stderr, "{}  {}\n", open_ ? "\r\x1b[K" : "", e.text);
      open_ = false;
    }
    if (shown_.size() > 1000) shown_.erase(shown_.begin(), shown_.begin() + 500);
  }

  std::string text(const ReplayProgress& p) const {
    if (std::string_view(p.phase) == "loading")
      return fmt::format("{}  the server is loading its model", clock_text(p.elapsed_s));
    const std::size_t expected = std::max<std::size_t>(1, std::max(p.expected, p.sent));
    const double share = static_cast<double>(p.completed) / static_cast<double>(expected);
    const bool checking = std::string_view(p.phase) == "check";
    constexpr int kBar = 16;
    const int full = static_cast<int>(share * kBar);
    std::string line =
        fmt::format("[{:#>{}}{:.>{}}] {}/{}", "", full, "", kBar - full, p.completed, expected);
    if (checking) return line + " sent again without speculation";
    const double left_s = limit_s_ > 0 ? limit_s_ - p.elapsed_s
                          : share > 0  ? p.elapsed_s * (1 / share - 1)
                                       : 0;
    line += fmt::format("  {} (-{})", clock_text(p.elapsed_s), clock_text(left_s));
    if (p.stats) {
      const StatsSample& s = *p.stats;
      if (s.speedup)
        line += fmt::format("  speedup {:.2f} [{:.2f}, {:.2f}]", s.speedup->value, s.speedup->low,
                            s.speedup->high);
      else
        line += "  speedup: measuring";
      if (s.net_speedup) line += fmt::format("  net {:.2f}", s.net_speedup->value);
      if (s.speedup_last_minute)
        line += fmt::format("  last minute {:.2f}", s.speedup_last_minute->value);
      line +=
          fmt::format("  acceptance {:.2f}  {:.0f} tok/s  v{} ({} swaps)",
                      s.acceptance_length_last_minute, s.decode_tokens_per_s, s.version, s.swaps);
    } else if (p.elapsed_s > 0) {
      line += fmt::format("  {:.0f} tok/s", static_cast<double>(p.completion_tokens) / p.elapsed_s);
    }
    return line + fmt::format("  {} failed", p.failed);
  }

  double limit_s_;
  bool terminal_, open_ = false;
  double shown_s_ = -1e9;
  bool events_seen_ = false;
  std::vector<SpeculatorEvent> shown_;
  std::string_view phase_;
};

std::string figure(const json::value& v, int digits = 2) {
  return v.is_number() ? fmt::format("{:.{}f}", v.to_number<double>(), digits) : std::string("-");
}

void print_replay(const json::object& s) {
  const json::object& total = s.at("total").get_object();
  fmt::print("\n{:<24} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "ms", "mean", "p50", "p95", "p99", "max");
  for (const auto& [key, name] : {std::pair{"ttft_ms", "time to first token"},
                                  {"tpot_ms", "time per token"},
                                  {"itl_ms", "between pieces"},
                                  {"e2e_ms", "end to end"}}) {
    const json::object* p = total.at(key).if_object();
    if (p)
      fmt::print("{:<24} {:>9} {:>9} {:>9} {:>9} {:>9}\n", name, figure(p->at("mean"), 1),
                 figure(p->at("p50"), 1), figure(p->at("p95"), 1), figure(p->at("p99"), 1),
                 figure(p->at("max"), 1));
  }
  fmt::print("\n{:<24} {:>6} {:>7} {:>12} {:>11} {:>24}\n", "", "sent", "failed", "tokens/s",
             "acceptance", "speedup [95 %]");
  const auto row = [](std::string_view name, const json::object& f, const json::value* speedup) {
    std::string text = "-";
    if (speedup && speedup->is_object()) {
      const json::object& i = speedup->get_object();
      const json::array& ci = i.at("ci95").get_array();
      text = fmt::format("{} [{}, {}]", figure(i.at("value")), figure(ci[0]), figure(ci[1]));
    }
    fmt::print("{:<24} {:>6} {:>7} {:>12} {:>11} {:>24}\n", name,
               f.at("sent").to_number<std::int64_t>(), f.at("failed").to_number<std::int64_t>(),
               figure(f.at("decode_tokens_per_s_per_request"), 1),
               figure(f.at("acceptance_length")), text);
  };
  row("all", total, s.if_contains("speedup"));
  for (const json::value& q : s.at("quarters").get_array())
    row(fmt::format("  quarter {}", q.at("quarter").to_number<int>()), q.get_object(),
        q.get_object().if_contains("speedup"));
  const json::object& domains = s.at("domains").get_object();
  if (domains.size() > 1)
    for (const auto& [name, f] : domains)
      row(fmt::format("  {}", std::string_view(name).substr(0, 22)), f.get_object(), nullptr);
  for (const auto& [code, n] : total.at("failures_by_code").get_object())
    fmt::print("failed, {}: {}\n", std::string_view(code), n.to_number<std::int64_t>());
  if (const json::value* check = s.if_contains("lossless_check"))
    fmt::print("sent again without speculation: {}, of which {} past {} tokens; {} differ\n",
               check->at("requests").to_number<std::int64_t>(),
               check->at("requests_past_tokens").to_number<std::int64_t>(),
               check->at("past_tokens").to_number<std::int64_t>(),
               check->at("mismatches").to_number<std::int64_t>());
}

bool write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (file) return true;
  fmt::print(stderr, "foretoken replay: cannot write {}\n", path);
  return false;
}

// The server's first model, for bodies that name none.
std::string first_model(const ReplayOptions& options) {
  HttpClient client(options.url, options.api_key, 10, &g_stop);
  return std::string(string_at(get_json(client, "/v1/models").value_or(nullptr), "/data/0/id"));
}

int replay_main(int argc, char** argv) {
  std::string log_path, url = "http://127.0.0.1:8080", mode = "closed", output, save_outputs,
                        api_key;
  double limit_minutes = 0;
  std::size_t max_requests = 0;
  bool trace = true, table = true;
  ReplayOptions options;
  if (const char* key = std::getenv("OPENAI_API_KEY")) api_key = key;

  Flags flags(
      argv[0],
      "Sends a traffic log to an OpenAI-compatible server and measures what its clients see.");
  flags.app()
      .add_option("log", log_path,
                  "JSONL of OpenAI request bodies with timestamps, OpenAI batch, Mooncake, vLLM, "
                  "ShareGPT, Azure CSV")
      ->required();
  flags.option("url", url, "the server");
  flags.number(
      "load", options.load, 0.0, 10.0,
      "random arrivals at this share of what the warm-up's concurrency achieves, e.g. 0.5; "
      "0: off; needs --limit-minutes");
  flags.option("mode", mode, "closed: so many in flight; open: each request at its time")
      ->check(CLI::IsMember({"open", "closed"}));
  flags.number("concurrency", options.concurrency, 1, 4096, "requests in flight in a closed loop");
  flags.number("rate", options.rate, 0.0, 1e6,
               "open loop: requests a second; 0: the log's own times");
  flags.number("limit-minutes", limit_minutes, 0.0, 1e6,
               "thin the log evenly to fit this time; 0: all of it");
  flags.option("max-requests", max_requests, "only the log's first so many; 0: all");
  flags.number("timeout", options.timeout_s, 0.1, 86400.0,
               "seconds of silence until a request has failed");
  flags.option("request-model", options.ask.model,
               "the model to name in every request; default: the log's, else the server's first");
  flags.option("api-key", api_key, "sent as Bearer; default: OPENAI_API_KEY")->default_str("");
  flags.option("check", options.check,
               "send so many again without speculation afterwards and compare the texts");
  flags.option("check-long", options.check_long,
               "of these, at least so many long ones where there are");
  flags.option("check-long-tokens", options.check_long_tokens,
               "what long is: prompt and answer past this many tokens");
  flags.toggle("trace", trace, "let the server learn from these requests");
  flags.option("output", output, "write the figures as JSON to this file");
  flags.option("save-outputs", save_outputs, "write every answer as JSONL to this file");
  flags.toggle("table", table, "print the figures as a table");
  if (const auto status = flags.parse(argc, argv)) return *status;

  const auto fail = [&](const Error& error) { return exit_status(argv[0], error); };
  auto server = ServerUrl::parse(url);
  if (!server) return fail(server.error());
  options.url = *server;
  options.api_key = api_key;
  options.open_loop = mode == "open";
  options.limit_s = limit_minutes * 60;
  if (!trace) options.ask.trace = false;
  auto log = read_traffic_log(log_path);
  if (!log) return fail(log.error());
  if (max_requests > 0 && log->size() > max_requests) log->resize(max_requests);
  if (options.ask.model.empty()) {
    const bool unnamed = std::any_of(
        log->begin(), log->end(), [](const LoggedRequest& r) { return !r.body.contains("model"); });
    const std::string model = unnamed ? first_model(options) : "";
    if (!model.empty())
      for (LoggedRequest& r : *log)
        if (!r.body.contains("model")) r.body["model"] = model;
  }

  struct sigaction action {};
  action.sa_handler = on_signal;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ProgressLine progress(options.limit_s);
  const auto result = play(
      *log, options, [&](const ReplayProgress& p) { progress.show(p); }, g_stop);
  progress.end();
  if (!result) return fail(result.error());

  const json::object summary = summarize(*result, *log, options);
  if (table) print_replay(summary);
  bool written = true;
  if (!output.empty()) written &= write_file(output, json::serialize(summary) + "\n");
  if (!save_outputs.empty()) written &= write_file(save_outputs, outcomes_jsonl(*result));
  if (output.empty() && !table) fmt::print("{}\n", json::serialize(summary));
  if (!written) return 1;
  if (result->interrupted) return 130;
  const bool all_failed = std::none_of(result->outcomes.begin(), result->outcomes.end(),
                                       [](const RequestOutcome& o) { return o.ok(); });
  if (all_failed && !result->outcomes.empty())
    return fail(Error{ErrorCode::kUnavailable,
                      "every request failed; the first: " + result->outcomes.front().error});
  return 0;
}

const Subcommand kReplay{"replay", "send a traffic log to a server and measure", replay_main, 30};

}  // namespace
}  // namespace foretoken
