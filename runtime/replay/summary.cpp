#include "runtime/replay/summary.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace foretoken {
namespace {

namespace json = boost::json;
using Outcomes = std::vector<const RequestOutcome*>;

// 1 + accepted / rounds that drafted, of these requests; null where none drafted or the server does
// not say.
json::value acceptance_length(const Outcomes& outcomes) {
  std::int64_t accepted = 0, drafting = 0;
  for (const RequestOutcome* o : outcomes) {
    accepted += o->draft_n_accepted;
    drafting += o->drafting_rounds;
  }
  if (drafting == 0) return nullptr;
  return 1.0 + static_cast<double>(accepted) / static_cast<double>(drafting);
}

// Tokens a decode round of a sequence gave, rounds without a draft included.
json::value tokens_per_round(const Outcomes& outcomes) {
  std::int64_t tokens = 0, rounds = 0;
  for (const RequestOutcome* o : outcomes) {
    if (o->rounds == 0) continue;
    tokens += o->completion_tokens;
    rounds += o->rounds;
  }
  if (rounds == 0) return nullptr;
  return static_cast<double>(tokens) / static_cast<double>(rounds);
}

json::object figures(const Outcomes& all) {
  Outcomes ok;
  std::map<std::string, std::int64_t> failures;
  std::int64_t prompt = 0, completion = 0, drafted = 0, accepted = 0;
  double predicted_ms = 0;
  std::vector<double> ttft, tpot, itl, e2e;
  for (const RequestOutcome* o : all) {
    if (!o->ok()) {
      ++failures[o->status == 0     ? "no answer"
                 : o->status == 200 ? "broken stream"
                                    : std::to_string(o->status)];
      continue;
    }
    ok.push_back(o);
    prompt += o->prompt_tokens;
    completion += o->completion_tokens;
    drafted += o->draft_n;
    accepted += o->draft_n_accepted;
    predicted_ms += o->predicted_ms;
    ttft.push_back(o->ttft_ms);
    e2e.push_back(o->e2e_ms);
    if (o->completion_tokens > 1) tpot.push_back(o->tpot_ms());
    itl.insert(itl.end(), o->gaps_ms.begin(), o->gaps_ms.end());
  }
  json::object by_code;
  for (const auto& [code, n] : failures) by_code[code] = n;
  return {{"sent", all.size()},
          {"completed", ok.size()},
          {"failed", all.size() - ok.size()},
          {"failures_by_code", std::move(by_code)},
          {"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"drafted", drafted},
          {"accepted", accepted},
          {"acceptance_rate",
           drafted > 0 ? json::value(static_cast<double>(accepted) / static_cast<double>(drafted))
                       : json::value(nullptr)},
          {"acceptance_length", acceptance_length(ok)},
          {"tokens_per_round", tokens_per_round(ok)},
          {"decode_tokens_per_s_per_request",
           predicted_ms > 0 ? json::value(static_cast<double>(completion) / predicted_ms * 1000)
                            : json::value(nullptr)},
          {"ttft_ms", percentiles(std::move(ttft))},
          {"tpot_ms", percentiles(std::move(tpot))},
          {"itl_ms", percentiles(std::move(itl))},
          {"e2e_ms", percentiles(std::move(e2e))}};
}

std::optional<Interval> speedup(const ReplayResult& result, std::size_t from, std::size_t to) {
  if (from >= result.marks.size() || to >= result.marks.size() || from >= to) return std::nullopt;
  return speedup_between(result.marks[from], result.marks[to]);
}

json::array quarters(const ReplayResult& result, std::size_t log_size) {
  json::array out;
  for (int q = 0; q < kQuarters; ++q) {
    Outcomes of_quarter;
    for (const RequestOutcome& o : result.outcomes)
      if (quarter_of(o.index, log_size) == q) of_quarter.push_back(&o);
    const auto at = static_cast<std::size_t>(q);
    json::object quarter = figures(of_quarter);
    quarter["quarter"] = q + 1;
    // From border to border; a quarter's last answers may end a little after its border.
    quarter["speedup"] = to_json(speedup(result, at, at + 1));
    if (at + 1 < result.marks.size() && result.marks[at + 1].sample)
      quarter["speculator_version_at_end"] = result.marks[at + 1].sample->version;
    out.push_back(std::move(quarter));
  }
  return out;
}

json::object check_json(const ReplayResult& result, const ReplayOptions& options) {
  json::array differing;
  std::size_t lengthy = 0, mismatches = 0, failed = 0;
  for (const CheckedRequest& c : result.checks) {
    lengthy += c.tokens > options.check_long_tokens;
    if (c.equal) continue;
    c.error.empty() ? ++mismatches : ++failed;
    differing.push_back(
        json::object{{"index", c.index}, {"error", c.error}, {"text", c.text}, {"again", c.again}});
  }
  return {{"requests", result.checks.size()},
          {"mismatches", mismatches},
          {"failed", failed},
          {"past_tokens", options.check_long_tokens},
          {"requests_past_tokens", lengthy},
          {"differing", std::move(differing)},
          {"definition",
           "sent again with speculation off; text, token count and finish reason compared"}};
}

}  // namespace

json::value percentiles(std::vector<double> values) {
  if (values.empty()) return nullptr;
  std::sort(values.begin(), values.end());
  const auto at = [&](double p) {
    const double position = p * static_cast<double>(values.size() - 1);
    const auto below = static_cast<std::size_t>(position);
    const std::size_t above = std::min(below + 1, values.size() - 1);
    return values[below] +
           (position - static_cast<double>(below)) * (values[above] - values[below]);
  };
  double sum = 0;
  for (double v : values) sum += v;
  return json::object{{"mean", sum / static_cast<double>(values.size())},
                      {"p50", at(0.5)},
                      {"p90", at(0.9)},
                      {"p95", at(0.95)},
                      {"p99", at(0.99)},
                      {"max", values.back()}};
}

json::object summarize(const ReplayResult& result, const std::vector<LoggedRequest>& log,
                       const ReplayOptions& options) {
  Outcomes all;
  std::map<std::string, Outcomes> by_domain;
  for (const RequestOutcome& o : result.outcomes) {
    all.push_back(&o);
    by_domain[o.domain.empty() ? "unlabelled" : o.domain].push_back(&o);
  }
  json::object out{{"schema", "foretoken.replay/1"},
                   {"mode", options.load > 0    ? "load"
                            : options.open_loop ? "open"
                                                : "closed"},
                   {"interrupted", result.interrupted},
                   {"log_requests", log.size()},
                   {"wall_s", result.wall_s}};
  if (!options.open_loop) out["concurrency"] = options.concurrency;
  if (options.load > 0) {
    out["load"] = options.load;
    out["capacity_requests_per_s"] = result.capacity;
    out["rate_requests_per_s"] = result.rate;
  }
  out["total"] = figures(all);
  double completion = 0, total = 0, completed = 0, late_ms = 0;
  for (const RequestOutcome* o : all) {
    late_ms = std::max(late_ms, (o->sent_s - o->due_s) * 1000);
    if (!o->ok()) continue;
    completion += static_cast<double>(o->completion_tokens);
    total += static_cast<double>(o->completion_tokens + o->prompt_tokens);
    ++completed;
  }
  const double wall_s = std::max(1e-9, result.wall_s);
  out["request_throughput"] = completed / wall_s;
  out["output_throughput"] = completion / wall_s;
  out["total_token_throughput"] = total / wall_s;
  if (options.open_loop || options.load > 0) out["max_send_delay_ms"] = late_ms;
  if (result.marks.size() >= 2) {
    out["speedup"] = to_json(speedup(result, 0, result.marks.size() - 1));
    const auto &first = result.marks.front().sample, &last = result.marks.back().sample;
    if (first && last) {
      out["swaps"] = last->swaps - first->swaps;
      out["speculator_version"] = last->version;
    }
    out["server_stats"] = result.marks.back().whole;
    if (const json::value* net = result.marks.back().whole.if_contains("net_speedup"))
      out["net_speedup"] = *net;
    out["speculator"] = result.speculator;
  }
  out["quarters"] = quarters(result, log.size());
  json::object domains;
  for (const auto& [domain, outcomes] : by_domain) domains[domain] = figures(outcomes);
  out["domains"] = std::move(domains);
  if (options.check > 0) out["lossless_check"] = check_json(result, options);
  json::array series;
  for (const StatsSample& s : result.samples) series.push_back(to_json(s));
  out["series"] = std::move(series);
  out["definitions"] = json::object{
      {"ttft_ms", "from sending the request to its first text"},
      {"tpot_ms", "(end to end - time to first token) / (tokens - 1), per request"},
      {"itl_ms", "between streamed pieces; a piece of a speculative round may hold several tokens"},
      {"acceptance_length",
       "1 + accepted tokens / rounds that drafted, as the server counted per request"},
      {"speedup",
       "decode time per token without speculation / with it, from the server's control rounds "
       "between two marks; 95 % interval"},
      {"quarters", "of the log, by position; a thinned log keeps its quarters"}};
  return out;
}

std::string outcomes_jsonl(const ReplayResult& result) {
  std::string out;
  for (const RequestOutcome& o : result.outcomes) {
    json::object line{{"index", o.index},
                      {"domain", o.domain},
                      {"status", o.status},
                      {"error", o.error},
                      {"due_s", o.due_s},
                      {"sent_s", o.sent_s},
                      {"ttft_ms", o.ttft_ms},
                      {"e2e_ms", o.e2e_ms},
                      {"prompt_tokens", o.prompt_tokens},
                      {"completion_tokens", o.completion_tokens},
                      {"draft_n", o.draft_n},
                      {"draft_n_accepted", o.draft_n_accepted},
                      {"drafting_rounds", o.drafting_rounds},
                      {"speculator_version", o.speculator_version},
                      {"finish_reason", o.finish_reason},
                      {"text", o.text}};
    if (o.seed) line["seed"] = *o.seed;
    out += json::serialize(line);
    out += '\n';
  }
  return out;
}

}  // namespace foretoken
