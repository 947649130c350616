#include "trainer/offline/gate_replay.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/state_folder.h"
#include "foretoken/protocol/trace_segment.h"
#include "runtime/evaluate/evaluation.h"

namespace foretoken::trainer {
namespace {

namespace json = boost::json;

// Removed with everything in it, unless it is to be kept.
class Folder {
 public:
  explicit Folder(const std::filesystem::path& kept)
      : path_(kept.empty() ? std::filesystem::temp_directory_path() /
                                 fmt::format("foretoken-gate-{}", ::getpid())
                           : kept),
        temporary_(kept.empty()) {}
  ~Folder() {
    std::error_code ignored;
    if (temporary_) std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  bool temporary_;
};

class NoServer final : public Sender {
 public:
  bool try_send(Message) override { return true; }
};

json::object candidate_json(const CandidateVerdict& verdict, std::int64_t at_request) {
  json::object figures;
  for (const auto& [name, value] : verdict.figures) figures[name] = value;
  return {{"candidate", verdict.candidate}, {"decided_at_request", at_request},
          {"scored", verdict.requests},     {"version", verdict.version.value},
          {"step", verdict.step},           {"text", verdict.text},
          {"figures", std::move(figures)}};
}

}  // namespace

Status replay_gate(const GateReplayOptions& options) {
  std::optional<ModelFingerprint> fingerprint;
  CostsOfLog log_costs;
  bool head_ran = false;
  auto read = read_segments(options.traces, 0, [&](std::uint64_t, const Message& message) {
    const auto trace = parse_trace(message);
    if (!trace) return true;
    if (!fingerprint) fingerprint = trace->model_fingerprint;
    log_costs.add(*trace);
    for (const RoundTrace& round : trace->rounds)
      head_ran |= std::ranges::count(round.kinds, SpeculatorKind::kHead) > 0;
    return true;
  });
  if (!read) return read.error();
  if (!fingerprint) {
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("--from-traces {}: no readable request", options.traces.string())};
  }
  std::error_code error;
  const auto trainer_state = model_state_folder(options.output, *fingerprint) / "trainer";
  if (!options.output.empty() && std::filesystem::exists(trainer_state, error)) {
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("--output {}: {} exists; a replay begins from an empty state",
                             options.output.string(), trainer_state.string())};
  }
  const Folder folder(options.output);
  ManualClock clock;
  auto opened = TrainingSession::open(folder.path(), *fingerprint, options.session, clock);
  if (!opened) return opened.error();
  TrainingSession& session = **opened;

  ServerHello hello;
  hello.run = 1;
  hello.model_fingerprint = *fingerprint;
  RoundCosts costs =
      options.costs ? *options.costs : log_costs.fit().value_or(RoundCosts::typical());
  // Not measured: priced by what each candidate's head reads.
  if (!options.costs && !head_ran) costs.head_start = costs.head_step = 0;
  hello.round_ms = costs.round_ms();
  hello.head_start_ms = static_cast<float>(costs.head_start);
  hello.head_step_ms = static_cast<float>(costs.head_step);
  session.heard(hello);

  NoServer server;
  std::int64_t requests = 0, tokens = 0;
  std::uint64_t judged = 0;  // the last candidate reported
  json::array candidates;
  std::optional<std::int64_t> first_promotion;
  std::int64_t promotions = 0;
  const auto report = [&] {
    for (const CandidateVerdict& verdict : session.status().verdicts) {
      if (verdict.candidate <= judged) continue;
      judged = verdict.candidate;
      if (verdict.version.value != 0) {
        ++promotions;
        if (!first_promotion) first_promotion = requests;
      }
      spdlog::info("request {}: candidate {}: {}", requests, verdict.candidate, verdict.text);
      candidates.push_back(candidate_json(verdict, requests));
    }
  };
  const auto stopped = [&] { return options.stopping && *options.stopping; };
  read = read_segments(options.traces, 0, [&](std::uint64_t, const Message& message) {
    const auto trace = parse_trace(message);
    if (!trace || trace->model_fingerprint != *fingerprint) return true;
    const auto since = std::chrono::milliseconds(trace->unix_ms - clock.unix_ms());
    if (since.count() > 0) clock.advance(since);
    if (auto s = session.ingest(message, *trace); !s) {
      spdlog::warn("{}", s.error().message);
      return true;
    }
    ++requests;
    tokens += std::int64_t(trace->generated.size());
    for (int slice = 0; (options.slices_per_request == 0 || slice < options.slices_per_request) &&
                        !stopped() && session.work();
         ++slice) {
    }
    report();
    session.pump(server);
    return !stopped() &&
           (options.max_requests == 0 || requests < std::int64_t(options.max_requests));
  });
  if (!read) return read.error();

  const json::object out{{"requests", requests},
                         {"tokens", tokens},
                         {"promotions", promotions},
                         {"first_promotion_at_request",
                          first_promotion ? json::value(*first_promotion) : json::value(nullptr)},
                         {"costs", json::object{{"round_ms", json::value_from(costs.rounds)},
                                                {"head_start_ms", costs.head_start},
                                                {"head_step_ms", costs.head_step}}},
                         {"standing", session.standing()},
                         {"candidates", std::move(candidates)}};
  return write_report(options.json, json::serialize(out) + "\n");
}

}  // namespace foretoken::trainer
