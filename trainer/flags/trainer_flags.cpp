#include "trainer/flags/trainer_flags.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "foretoken/protocol/state_folder.h"
#include "runtime/model/fingerprint.h"
#include "runtime/speculate/head/eagle3_head.h"
#include "runtime/speculate/head/recurrent_head.h"

namespace foretoken::trainer {

void TrainerFlags::add_to(Flags& flags) {
  add_daemon(flags);
  add_head(flags);
  add_recording(flags);
  flags.app()
      .add_flag("--check", check, "read keys, model and head, say what would run, and exit")
      ->configurable(false);
}

void TrainerFlags::add_daemon(Flags& flags) {
  SessionOptions& session = daemon.session;
  state_dir_ = default_state_root().string();
  flags.option("traces-endpoint", endpoints.traces, "where the server sends traces");
  flags.app().add_option("--trace-endpoint", endpoints.traces)->group("");  // its former name
  flags.option("weights-endpoint", endpoints.weights, "where the server receives weights");
  flags.option("state-dir", state_dir_, "buffer, checkpoint and versions, by model");
  flags.option("keys", keys_,
               "folder of keys (see foretoken keys): signs the weights, and names the server; "
               "default: keys in the state directory, made when needed");
  flags.option("model-fingerprint", fingerprint_,
               "train for this model only (64 hexadecimal digits); else for the server's");
  flags.number("gate-draft-length", session.gate.draft_length, 1, 16,
               "drafted tokens a round at most when the gate replays a request");
  flags.choice<RoundPlan>("gate-rounds", session.gate.plan,
                          {{"cost", RoundPlan::kByCost}, {"fixed", RoundPlan::kFixed}},
                          "drafts as long as they pay, as the server's, or all of that length");
  flags.number("gate-requests", gate_requests_, 2, 1000,
               "requests that must have scored a candidate before it can be promoted; below 30 the "
               "gate's error is not what it says");
  flags.number("gate-least-gain", gate_least_gain_, -2.0, 1.0,
               "gain that a candidate must be shown to exceed, 0.01 for 1 %; below 0, for tests, "
               "no domain is held to more either: with -2 every candidate is promoted");
  flags.number("first-candidate-requests", session.gate.least_trained_requests, 1, 100000,
               "requests to learn from before the first candidate");
  flags.number("candidate-growth", session.gate.growth, 1.05, 100.0,
               "the next candidate comes after so many times the last one's requests");
  flags.number("buffer-mib", buffer_mib_, 1, 1 << 24, "size of the replay buffer on disk");
  flags.number("retention-hours", retention_hours_, 0.0, 1e6,
               "requests older than this are deleted from the buffer; 0: kept while there is room");
  flags.number("learning-rate", learner.fusion.learning_rate, 1e-6, 1.0,
               "of the fusion table's biases");
  Flags::Choices<const Objective*> known;
  for (const Objective& objective : objectives()) known.emplace_back(objective.name, &objective);
  flags.choice("objective", learner.fusion.objective, known,
               "what is minimised; " + objective_help());
  // The server's flags too, with values of their own there: `foretoken up` hands its environment
  // on.
  flags.variable(flags.number("threads", threads, 1, 1024, "threads of the arithmetic"),
                 "FORETOKEN_TRAINER_THREADS");
  flags.variable(flags.choice("scheduling", scheduling, {"idle", "batch", "normal"},
                              "what nobody else wants, at nice 10, or as any process"),
                 "FORETOKEN_TRAINER_SCHEDULING");
  flags.variable(flags.number("cpu-share", daemon.cpu_share, 0.01, 1.0,
                              "at most this share of a core, however idle the server"),
                 "FORETOKEN_TRAINER_CPU_SHARE");
  flags.choice("log-level", log_level, {"trace", "debug", "info", "warn", "error"}, "");
}

void TrainerFlags::add_head(Flags& flags) {
  HeadOptions& head = learner.head;
  eagle3_rate_ = Eagle3LearnerOptions{}.learning_rate;
  flags.option("model", model_,
               "the server's GGUF file: its embedding and output rows are what the recurrent head "
               "is made of. Without it only the fusion table is trained");
  flags.number("head-inner", head.inner, 0, kMaxHeadInner,
               "inner width of the head; 0: by the model");
  flags.number("head-vocabulary", head.vocabulary, 0, kMaxHeadVocab,
               "tokens it may draft; 0: by the model");
  flags.number("head-learning-rate", head.learning_rate, 0.0, 1.0, "0: by the model");
  flags.number("head-table-learning-rate", head.table_learning_rate, 1e-7, 1.0,
               "of the biases in the head");
  flags.number("head-gain-learning-rate", head.gain_learning_rate, 0.0, 1.0,
               "as a share of the gain");
  flags.number("passes", head.passes, 1.0, 100.0, "passes over a token");
  flags.number("converged-passes", head.converged_passes, 1.0, 100.0,
               "passes over a token once the gate finds nothing more to gain, until a candidate is "
               "promoted or traffic changes");
  flags.number("teacher-temperature", head.teacher_temperature, 0.05, 2.0,
               "at which a greedy request's distributions teach the head");
  flags.number(
      "domain-power", head.domain_power, 0.0, 1.0,
      "replays are of a domain of n requests with a chance that goes with n to this power: "
      "1, all requests alike; 0, all domains alike");
  flags.number("refused-weight", head.refused_weight, 0.0, 100.0,
               "of a position where a served draft was refused, beside others");
  flags.number("drift-tokens", head.drift_tokens, 0, 1000000,
               "after a change of traffic, so many tokens are learned from harder; 0: no change is "
               "looked for");
  flags.number("drift-passes", head.drift_passes, 1.0, 100.0, "passes over a token meanwhile");
  flags.number("drift-learning-rate", head.drift_learning_rate, 0.1, 10.0,
               "factor on the head's learning rate meanwhile");
  flags.option("head-bf16", head.bf16,
               "products in bf16: 1 or 0; default: where the processor is fast at it (AMX)");
  flags.number("head-average", head.average_decay, 0.0, 0.9999,
               "of the moving average that is served");
  flags.option("eagle3", eagle3_,
               "train this published EAGLE-3 head on from where it is, instead of a recurrent one: "
               "a folder with config.json and model.safetensors (the server's --spec-head)");
  flags.number("eagle3-learning-rate", eagle3_rate_, 1e-8, 1.0, "of that head");
  flags.number("feature-cache-mib", cache_mib_, 1, 1 << 20, "decoded hidden states kept in memory");
  flags.variable(
      flags.option("seed", head.seed, "of the head's first weights and of the order of replays"),
      "FORETOKEN_TRAINER_SEED");
}

// What a run over a recording is told stands on its command line: no environment variables.
void TrainerFlags::add_recording(Flags& flags) {
  const auto add = [&flags](CLI::Option* option) {
    flags.variable(option, "");
    return option->group("From a recording");
  };
  add(flags.option("from-traces", from_traces,
                   "learn from these segments (foretoken serve --trace-dir) and stop"));
  add(flags.option("held-out", offline.held_out, "last requests kept for scoring"));
  add(flags.option("max-requests", offline.max_requests, "only the first so many; 0: all"));
  add(flags.option("evaluate-at", offline.evaluate_at,
                   "score after so many tokens, e.g. 2000,5000"))
      ->delimiter(',');
  add(flags.toggle("without-candidates", offline.without_candidates,
                   "as if no n-gram had been found: what the head does alone"));
  add(flags.choice<std::optional<CandidateRebuild::Stores>>(
      "stores", offline.stores,
      {{"shared", CandidateRebuild::Stores::kShared},
       {"by-domain", CandidateRebuild::Stores::kByDomain}},
      "look all n-gram candidates up anew, each in the store as it was then (default: as the "
      "server logged them)"));
  add(flags.option("store-mib", store_mib_, "of each of these stores"))->check(CLI::Range(1, 4096));
  add(flags.toggle("gate", gate,
                   "not a curve but the daemon's life: candidates, verdicts and the requests at "
                   "which they came"));
  add(flags.option("round-ms", round_ms_,
                   "with --gate: ms of a round by rows, e.g. 20,21,23; default: the recording's"))
      ->delimiter(',');
  add(flags.option("head-ms", head_ms_, "with --round-ms: the head's start and step, e.g. 0.5,0.4"))
      ->delimiter(',')
      ->expected(2);
  add(flags.option("slices-per-request", gate_replay.slices_per_request,
                   "with --gate: slices of work between two requests at most; 0: all that is due"))
      ->check(CLI::NonNegativeNumber);
  add(flags.option("json", json_, "the report; default: standard output"));
  add(flags.option(
      "output", output_,
      "folder for the learned speculator, signed; with --gate the state folder that server and "
      "trainer go on with, its keys included"));
}

std::string TrainerFlags::keys_folder() const {
  if (!keys_.empty()) return keys_;
  // What a replay publishes is for those who go on with its folder.
  return (gate && !output_.empty() ? output_ : state_dir_) + "/keys";
}

Status TrainerFlags::open(bool make_keys) {
  SessionOptions& session = daemon.session;
  daemon.state_root = state_dir_;
  session.gate.set_least_requests(gate_requests_);
  session.gate.set_least_gain(gate_least_gain_);
  session.buffer_bytes = buffer_mib_ << 20;
  session.buffer_max_age_s = 3600 * retention_hours_;
  learner.head.objective = learner.fusion.objective;
  learner.head.cache_bytes = cache_mib_ << 20;
  if (!fingerprint_.empty()) {
    auto parsed = fingerprint_from_hex(fingerprint_);
    if (!parsed) return parsed.error();
    daemon.model_fingerprint = *parsed;
  }
  const KeyFolder folder(keys_folder());
  if (keys_.empty() && make_keys) {
    if (auto s = folder.make(true, true); !s) return s;
  }
  if (!keys_.empty() || make_keys) {
    auto keys = folder.trainer();
    if (!keys) return keys.error();
    session.signing_key = keys->signing;
    endpoints.keys = keys->link;
  }
  if (auto s = open_model(); !s) return s;
  if (auto s = open_eagle3(); !s) return s;

  session.make_learner = learner_factory(learner);
  gate_replay.traces = offline.traces = from_traces;
  gate_replay.session = session;
  gate_replay.max_requests = offline.max_requests;
  gate_replay.output = offline.output = output_;
  gate_replay.json = offline.json = json_;
  if (!round_ms_.empty()) {
    gate_replay.costs = RoundCosts::measured(round_ms_, 0, 0);
    gate_replay.costs->head_start = head_ms_.empty() ? 0 : head_ms_[0];
    gate_replay.costs->head_step = head_ms_.empty() ? 0 : head_ms_[1];
  }
  offline.learner = learner;
  offline.store_bytes = store_mib_ << 20;
  offline.signing_key = session.signing_key;
  return Ok{};
}

Status TrainerFlags::open_model() {
  if (model_.empty()) {
    spdlog::info("no --model: the fusion table is trained, without a recurrent head");
    return Ok{};
  }
  auto rows = VocabularyRows::open(model_);
  if (!rows) {
    if (rows.error().code == ErrorCode::kNotFound || rows.error().code == ErrorCode::kIo)
      return rows.error();
    spdlog::warn("{}: the fusion table alone is trained", rows.error().message);
    return Ok{};
  }
  learner.model = daemon.session.rows = *rows;
  // A server of another model would fill the head with hidden states that mean something else.
  kernels::ThreadPool pool(1);
  auto found = fingerprint_of(*(*rows)->file(), 0, pool);
  if (!found) return found.error();
  if (daemon.model_fingerprint && *daemon.model_fingerprint != *found)
    return Error{ErrorCode::kInvalidInput,
                 fmt::format("--model-fingerprint: found {}, but {} is {}", fingerprint_, model_,
                             to_hex(*found))};
  daemon.model_fingerprint = *found;
  return Ok{};
}

Status TrainerFlags::open_eagle3() {
  if (eagle3_.empty()) return Ok{};
  auto checkpoint = read_eagle3(eagle3_);
  if (!checkpoint) return checkpoint.error();
  if (!learner.model)
    return Error{ErrorCode::kInvalidInput, "--eagle3: wanted --model too, the server's GGUF file"};
  // Whether it is this model's is found by making it, as the server would.
  auto weights = Eagle3Head::create(
      *checkpoint, HeadTerms::none(eagle3_parts(*checkpoint)->config.hidden), learner.model);
  if (!weights) return weights.error();
  Eagle3LearnerOptions& eagle3 = learner.eagle3.emplace();
  static_cast<StepOptions&>(eagle3) = learner.head;
  eagle3.start = std::move(*checkpoint);
  eagle3.learning_rate = eagle3_rate_;
  return Ok{};
}

}  // namespace foretoken::trainer
