#include "trainer/offline/offline.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <map>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/transport.h"
#include "runtime/evaluate/portfolio_replay.h"
#include "runtime/evaluate/sequential_test.h"
#include "trainer/buffer/segment_reader.h"

namespace foretoken::trainer {
namespace {

namespace json = boost::json;

double process_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

class Bar {
 public:
  explicit Bar(std::int64_t total) : total_(total), terminal_(isatty(STDERR_FILENO) != 0) {}
  void show(std::int64_t done, double loss) {
    const int percent = total_ > 0 ? int(std::min<std::int64_t>(100, done * 100 / total_)) : 100;
    if (percent == shown_ || (!terminal_ && percent / 10 == shown_ / 10)) return;
    shown_ = percent;
    const std::string text = fmt::format("training [{}{}] {:3d} %, {} of {} tokens, loss {:.3f}",
                                         std::string(std::size_t(percent * 30 / 100), '#'),
                                         std::string(std::size_t(30 - percent * 30 / 100), '.'),
                                         percent, done, total_, loss);
    fmt::print(stderr, "{}{}{}", terminal_ ? "\r" : "", text,
               terminal_ && percent < 100 ? "" : "\n");
  }

 private:
  const std::int64_t total_;
  const bool terminal_;
  int shown_ = -1;
};

// As the recording, less what an experiment leaves out. Candidates that were looked up anew are
// kept apart, by record: replays read a request again and again.
class Recording final : public TraceSource {
 public:
  Recording(const std::filesystem::path& folder, bool without_candidates)
      : reader_(folder), without_candidates_(without_candidates) {}
  std::optional<RequestTrace> trace(std::uint64_t sequence) const override {
    auto trace = reader_.trace(sequence);
    if (!trace) return trace;
    const auto found = candidates_.find(sequence);
    for (std::size_t i = 0; i < trace->generated.size(); ++i) {
      if (without_candidates_) trace->generated[i].candidates.clear();
      if (found != candidates_.end()) trace->generated[i].candidates = found->second[i];
    }
    return trace;
  }
  void keep_candidates(std::uint64_t sequence, const RequestTrace& trace) {
    auto& lists = candidates_[sequence];
    for (const GeneratedTokenTrace& generated : trace.generated)
      lists.push_back(generated.candidates);
  }
  std::uint64_t oldest_sequence() const override { return reader_.oldest_sequence(); }
  const SegmentReader& reader() const { return reader_; }

 private:
  SegmentReader reader_;
  bool without_candidates_;
  std::map<std::uint64_t, std::vector<decltype(GeneratedTokenTrace::candidates)>> candidates_;
};

struct Tau {
  double mean = 0, error = 0;  // emitted tokens a round; its standard error over requests
};

Tau tau(const std::vector<RequestTrace>& held_out, SpecType kinds, const LearnedWeights& weights,
        int draft_length) {
  PortfolioReplay replay(kinds, &weights);
  double rounds = 0, emitted = 0;
  std::vector<std::pair<double, double>> requests;
  for (const RequestTrace& trace : held_out) {
    const PortfolioWalk walk = replay.walk_fixed(trace, draft_length);
    // Every decode round counts, also one in which nothing was proposed.
    double n = 0;
    for (const std::int32_t accepted : walk.accepted) n += accepted + 1;
    requests.emplace_back(double(walk.accepted.size()), n);
    rounds += double(walk.accepted.size());
    emitted += n;
  }
  Tau result;
  if (rounds == 0) return result;
  result.mean = emitted / rounds;
  double squares = 0;
  for (const auto& [r, e] : requests) squares += (e - result.mean * r) * (e - result.mean * r);
  result.error = std::sqrt(squares) / rounds;
  return result;
}

json::object acceptance(const std::vector<RequestTrace>& held_out, const LearnedWeights& weights,
                        const std::string& label) {
  json::object by_kind;
  const auto add = [&](const char* name, SpecType kinds) {
    json::object lengths;
    std::string line;
    for (const int k : {3, 5}) {
      const Tau t = tau(held_out, kinds, weights, k);
      lengths[fmt::format("k{}", k)] = {{"tau", t.mean}, {"standard_error", t.error}};
      line += fmt::format("  K={} {:.3f} (s.e. {:.3f})", k, t.mean, t.error);
    }
    spdlog::info("  {}{:<14}{}", label, name, line);
    by_kind[name] = std::move(lengths);
  };
  add("ngram", spec_type("ngram"));
  add("fusion", kinds_named("fusion"));
  if (weights.head) add("fusion+head", kinds_named("fusion", "head"));
  return by_kind;
}

}  // namespace

Status train_offline(const OfflineOptions& options) {
  Recording recording(options.traces, options.without_candidates);
  // Which requests there are, and the model they are of.
  std::vector<std::pair<std::uint64_t, std::int64_t>> requests;  // number, generated tokens
  std::optional<ModelFingerprint> fingerprint;
  for (std::uint64_t at = recording.oldest_sequence();;) {
    const auto record = recording.reader().first_from(at);
    if (!record || (options.max_requests && requests.size() == options.max_requests)) break;
    if (!fingerprint) fingerprint = record->trace.model_fingerprint;
    if (record->trace.model_fingerprint != *fingerprint) {
      return Error{ErrorCode::kInvalidInput,
                   fmt::format("--from-traces {}: record {} is of another model than the first",
                               options.traces.string(), record->sequence)};
    }
    requests.emplace_back(record->sequence, std::int64_t(record->trace.generated.size()));
    at = record->sequence + 1;
  }
  if (requests.size() <= options.held_out) {
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("--from-traces {}: {} requests, of which {} would be held out",
                             options.traces.string(), requests.size(), options.held_out)};
  }
  std::vector<RequestTrace> held_out;
  for (std::size_t i = requests.size() - options.held_out; i < requests.size(); ++i)
    if (auto trace = recording.trace(requests[i].first)) held_out.push_back(std::move(*trace));
  requests.resize(requests.size() - options.held_out);
  std::int64_t total = 0;
  for (const auto& [sequence, tokens] : requests) total += tokens;
  spdlog::info("{} requests, {} tokens to learn from; {} requests held out", requests.size(), total,
               held_out.size());

  std::map<std::string, std::vector<RequestTrace>> by_domain;
  std::optional<CandidateRebuild> stores;
  if (options.stores) stores.emplace(*options.stores, options.store_bytes);
  // The held-out requests by domain, with the candidates that they would have now.
  const auto refresh_held_out = [&] {
    by_domain.clear();
    for (RequestTrace& trace : held_out) {
      if (stores) stores->look_up(trace);
      by_domain[trace.domain].push_back(trace);
    }
  };

  const auto learner = learner_factory(options.learner)(recording);
  auto evaluate_at = options.evaluate_at;
  std::sort(evaluate_at.begin(), evaluate_at.end());
  json::array points;
  Bar bar(total);
  double train_seconds = 0;
  std::int64_t seen = 0;
  std::size_t next_point = 0;
  const auto evaluate = [&]() -> Status {
    auto weights = learned_from_bundle(learner->snapshot(), options.learner.model);
    if (!weights) return weights.error();
    const LearnerFacts facts = learner->facts();
    spdlog::info("after {} tokens ({} steps, {} passes over positions, {:.1f} s of one core):",
                 seen, facts.step, facts.positions, train_seconds);
    points.push_back({{"tokens", seen},
                      {"requests", facts.trained_requests},
                      {"steps", facts.step},
                      {"positions", facts.positions},
                      {"loss", facts.loss},
                      {"train_seconds", train_seconds}});
    refresh_held_out();
    json::object& point = points.back().get_object();
    point["acceptance"] = acceptance(held_out, **weights, "");
    if (by_domain.size() > 1) {
      json::object domains;
      for (const auto& [domain, traces] : by_domain)
        domains[domain] = acceptance(traces, **weights, domain_label(domain) + " ");
      point["domains"] = std::move(domains);
    }
    return Ok{};
  };
  for (const auto& [sequence, tokens] : requests) {
    auto trace = recording.trace(sequence);
    if (!trace) continue;
    if (stores) {
      stores->look_up(*trace);
      recording.keep_candidates(sequence, *trace);
      stores->add(*trace);
    }
    const double begun = process_seconds();
    learner->observe(sequence, *trace);
    while (learner->work(0)) {
      if (options.stopping && *options.stopping) break;
    }
    train_seconds += process_seconds() - begun;
    seen += tokens;
    bar.show(seen, learner->facts().loss);
    if (options.stopping && *options.stopping) break;
    if (next_point < evaluate_at.size() && seen >= evaluate_at[next_point]) {
      while (next_point < evaluate_at.size() && seen >= evaluate_at[next_point]) ++next_point;
      if (seen < total) {
        if (auto s = evaluate(); !s) return s;
      }
    }
  }
  if (auto s = evaluate(); !s) return s;
  const LearnerFacts facts = learner->facts();
  const json::object report{
      {"requests", requests.size()},
      {"tokens", seen},
      {"held_out_requests", held_out.size()},
      {"seed", options.learner.head.seed},
      {"head", options.learner.model != nullptr},
      {"train_seconds", train_seconds},
      {"ms_per_token_and_pass",
       facts.positions ? 1000 * train_seconds / double(facts.positions) : 0.0},
      {"points", points}};
  if (auto s = write_report(options.json, json::serialize(report) + "\n"); !s) return s;
  if (!options.output.empty()) {
    Bundle bundle = learner->snapshot();
    bundle.version = {1};
    bundle.model_fingerprint = *fingerprint;
    bundle.created_unix_ms = system_clock().unix_ms();
    bundle.verdict = fmt::format("trained from a recording of {} requests; {} held out",
                                 requests.size(), held_out.size());
    std::error_code error;
    std::filesystem::create_directories(options.output, error);
    const auto path = options.output / "speculator.bundle";
    if (auto s = write_file_atomically(path, serialize(bundle, *options.signing_key)); !s) return s;
    spdlog::info("wrote {}", path.string());
  }
  return Ok{};
}

}  // namespace foretoken::trainer
