// foretoken-trainer: learns the speculator from a server's traces and publishes what the gate lets
// through.
#include <fmt/format.h>
#include <malloc.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cctype>
#include <csignal>

#include "foretoken/protocol/keys.h"
#include "foretoken/protocol/state_folder.h"
#include "runtime/model/fingerprint.h"
#include "runtime/speculate/head/eagle3_head.h"
#include "runtime/speculate/head/recurrent_head.h"
#include "trainer/head/speculator_learner.h"
#include "trainer/ingest/background.h"
#include "trainer/ingest/trainer.h"
#include "trainer/offline/gate_replay.h"
#include "trainer/offline/offline.h"

namespace {

std::atomic<bool> stopping{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void stop(int) { stopping = true; }

void handle_signals() {
  struct sigaction action {};
  action.sa_handler = stop;  // without SA_RESTART: a wait ends at once
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

// --a-name: FORETOKEN_A_NAME.
std::string environment_of(std::string name) {
  for (char& c : name)
    c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return "FORETOKEN_" + name;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace foretoken;
  using namespace foretoken::trainer;

  CLI::App app(
      "Learns foretoken's speculator from a server's traces and publishes better versions to it.",
      "foretoken-trainer");
  LinkEndpoints endpoints{"tcp://127.0.0.1:7461", "tcp://127.0.0.1:7462", 200};
  TrainerOptions options;
  LearnerOptions learner;
  std::string keys_dir, state_dir = default_state_root().string(), fingerprint, scheduling = "idle",
                        log_level = "info";
  std::size_t buffer_mib = 1024;
  double retention_hours = 0, gate_least_gain = 0;
  int threads = 1, gate_requests = kLeastRequests;
  app.add_option("--traces-endpoint,--trace-endpoint", endpoints.traces,
                 "Where the server sends traces")
      ->capture_default_str();
  app.add_option("--weights-endpoint", endpoints.weights, "Where the server receives weights")
      ->capture_default_str();
  app.add_option("--state-dir", state_dir, "Buffer, checkpoint and versions, by model")
      ->capture_default_str();
  app.add_option("--keys", keys_dir,
                 "Folder of keys (see foretoken keys): signs the weights, and names the server; "
                 "default: keys in the state directory, made when needed");
  app.add_option("--model-fingerprint", fingerprint,
                 "Train for this model only (64 hexadecimal digits); else for the server's");
  app.add_option("--gate-draft-length", options.session.gate.draft_length,
                 "Drafted tokens a round at most when the gate replays a request")
      ->check(CLI::Range(1, 16))
      ->capture_default_str();
  app.add_option("--gate-rounds", options.session.gate.plan,
                 "cost: drafts as long as they pay, as the server's; fixed: all of that length")
      ->transform(CLI::CheckedTransformer(std::map<std::string, RoundPlan>{
          {"cost", RoundPlan::kByCost}, {"fixed", RoundPlan::kFixed}}));
  app.add_option(
         "--gate-requests", gate_requests,
         "Requests that must have scored a candidate before it can be promoted; below 30 the "
         "gate's error is not what it says")
      ->check(CLI::Range(2, 1000))
      ->capture_default_str();
  app.add_option("--gate-least-gain", gate_least_gain,
                 "Gain that a candidate must be shown to exceed, 0.01 for 1 %; below 0, for tests, "
                 "no domain is held to more either: with -2 every candidate is promoted")
      ->check(CLI::Range(-2.0, 1.0))
      ->capture_default_str();
  app.add_option("--first-candidate-requests", options.session.gate.least_trained_requests,
                 "Requests to learn from before the first candidate")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--candidate-growth", options.session.gate.growth,
                 "The next candidate comes after so many times the last one's requests")
      ->check(CLI::Range(1.05, 100.0))
      ->capture_default_str();
  app.add_option("--buffer-mib", buffer_mib, "Size of the replay buffer on disk")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option(
         "--retention-hours", retention_hours,
         "Requests older than this are deleted from the buffer; 0: kept while there is room")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--learning-rate", learner.fusion.learning_rate)
      ->check(CLI::Range(1e-6, 1.0))
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--objective",
         [&](const std::string& name) { learner.fusion.objective = find_objective(name); },
         "What is minimised: " + objective_help())
      ->check(CLI::IsMember(objective_names()))
      ->default_str(std::string(objectives().front().name));
  app.add_option("--threads", threads, "Threads of the arithmetic")
      ->envname("FORETOKEN_TRAINER_THREADS")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--scheduling", scheduling,
                 "idle (what nobody else wants), batch (nice 10) or normal")
      ->envname("FORETOKEN_TRAINER_SCHEDULING")
      ->check(CLI::IsMember({"batch", "idle", "normal"}))
      ->capture_default_str();
  app.add_option("--cpu-share", options.cpu_share,
                 "At most this share of a core, however idle the server")
      ->envname("FORETOKEN_TRAINER_CPU_SHARE")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  app.add_option("--log-level", log_level)
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.set_config("--config", "", "TOML file with these flags as keys")
      ->envname("FORETOKEN_TRAINER_CONFIG");
  HeadOptions& head = learner.head;
  std::string model_path, traces_dir, json_path, output_dir;
  OfflineOptions offline;
  GateReplayOptions gate_replay;
  bool replays_gate = false;
  std::size_t store_mib = 32;
  std::vector<float> round_ms, head_ms;
  app.add_option(
      "--model", model_path,
      "The server's GGUF file: its embedding and output rows are what the recurrent head "
      "is made of. Without it only the fusion table is trained");
  app.add_option("--head-inner", head.inner, "Inner width of the head; 0: by the model")
      ->check(CLI::Range(0, int(kMaxHeadInner)));
  app.add_option("--head-vocabulary", head.vocabulary, "Tokens it may draft; 0: by the model")
      ->check(CLI::Range(0, int(kMaxHeadVocab)));
  app.add_option("--head-learning-rate", head.learning_rate, "0: by the model")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--head-table-learning-rate", head.table_learning_rate)
      ->check(CLI::Range(1e-7, 1.0))
      ->capture_default_str();
  app.add_option("--head-gain-learning-rate", head.gain_learning_rate, "As a share of the gain")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--passes", head.passes, "Passes over a token")
      ->check(CLI::Range(1.0, 100.0))
      ->capture_default_str();
  app.add_option("--converged-passes", head.converged_passes,
                 "Passes over a token once the gate finds nothing more to gain, until a candidate "
                 "is promoted or traffic changes")
      ->check(CLI::Range(1.0, 100.0))
      ->capture_default_str();
  app.add_option("--teacher-temperature", head.teacher_temperature,
                 "At which a greedy request's distributions teach the head")
      ->check(CLI::Range(0.05, 2.0))
      ->capture_default_str();
  app.add_option("--domain-power", head.domain_power,
                 "Replays are of a domain of n requests with a chance that goes with n to this "
                 "power: 1, all requests alike; 0, all domains alike")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--refused-weight", head.refused_weight,
                 "Of a position where a served draft was refused, beside others")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  app.add_option(
         "--drift-tokens", head.drift_tokens,
         "After a change of traffic, so many tokens are learned from harder; 0: no change is "
         "looked for")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  app.add_option("--drift-passes", head.drift_passes, "Passes over a token meanwhile")
      ->check(CLI::Range(1.0, 100.0))
      ->capture_default_str();
  app.add_option("--drift-learning-rate", head.drift_learning_rate,
                 "Factor on the head's learning rate meanwhile")
      ->check(CLI::Range(0.1, 10.0))
      ->capture_default_str();
  app.add_option("--head-bf16", head.bf16,
                 "Products in bf16: 1 or 0; default: where the processor is fast at it (AMX)");
  app.add_option("--head-average", head.average_decay, "Of the moving average that is served")
      ->check(CLI::Range(0.0, 0.9999))
      ->capture_default_str();
  std::string eagle3_dir;
  double eagle3_rate = Eagle3LearnerOptions{}.learning_rate;
  app.add_option(
      "--eagle3", eagle3_dir,
      "Train this published EAGLE-3 head on from where it is, instead of a recurrent one: "
      "a folder with config.json and model.safetensors (the server's --spec-head)");
  app.add_option("--eagle3-learning-rate", eagle3_rate)
      ->check(CLI::Range(1e-8, 1.0))
      ->capture_default_str();
  std::size_t cache_mib = 256;
  app.add_option("--feature-cache-mib", cache_mib, "Decoded hidden states kept in memory")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--seed", head.seed, "Of the head's first weights and of the order of replays")
      ->envname("FORETOKEN_TRAINER_SEED")
      ->capture_default_str();
  const std::string kOffline = "From a recording";
  app.add_option("--from-traces", traces_dir,
                 "Learn from these segments (foretoken serve --trace-dir) and stop")
      ->group(kOffline);
  app.add_option("--held-out", offline.held_out, "Last requests kept for scoring")
      ->group(kOffline)
      ->capture_default_str();
  app.add_option("--max-requests", offline.max_requests, "Only the first so many; 0: all")
      ->group(kOffline);
  app.add_option("--evaluate-at", offline.evaluate_at, "Score after so many tokens, e.g. 2000,5000")
      ->group(kOffline)
      ->delimiter(',');
  app.add_flag("--without-candidates", offline.without_candidates,
               "As if no n-gram had been found: what the head does alone")
      ->group(kOffline);
  app.add_option("--stores", offline.stores,
                 "Look all n-gram candidates up anew, each in the store as it was then: shared, or "
                 "by-domain; default: as the server logged them")
      ->group(kOffline)
      ->transform(CLI::CheckedTransformer(std::map<std::string, CandidateRebuild::Stores>{
          {"shared", CandidateRebuild::Stores::kShared},
          {"by-domain", CandidateRebuild::Stores::kByDomain}}));
  app.add_option("--store-mib", store_mib, "Of each of these stores")
      ->group(kOffline)
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_flag("--gate", replays_gate,
               "Not a curve but the daemon's life: candidates, verdicts and the requests at which "
               "they came")
      ->group(kOffline);
  app.add_option("--round-ms", round_ms,
                 "With --gate: ms of a round by rows, e.g. 20,21,23; default: the recording's")
      ->group(kOffline)
      ->delimiter(',');
  app.add_option("--head-ms", head_ms, "With --round-ms: the head's start and step, e.g. 0.5,0.4")
      ->group(kOffline)
      ->delimiter(',')
      ->expected(2);
  app.add_option("--slices-per-request", gate_replay.slices_per_request,
                 "With --gate: slices of work between two requests at most; 0: all that is due")
      ->group(kOffline)
      ->check(CLI::NonNegativeNumber);
  app.add_option("--json", json_path, "The report; default: standard output")->group(kOffline);
  app.add_option(
         "--output", output_dir,
         "Folder for the learned speculator, signed; with --gate the state folder that server and "
         "trainer go on with, its keys included")
      ->group(kOffline);
  // Those that are not about a recording have an environment variable of their name; the ones above
  // that have another are the server's flags too.
  for (CLI::Option* option : app.get_options()) {
    if (option->get_group() != kOffline && option->get_envname().empty() &&
        option != app.get_help_ptr())
      option->envname(environment_of(option->get_lnames().front()));
  }
  CLI11_PARSE(app, argc, argv);

  spdlog::set_level(spdlog::level::from_str(log_level));
  spdlog::set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ trainer: %v");
  spdlog::flush_on(spdlog::level::info);
  handle_signals();
  const auto fail = [](const Error& error) {
    spdlog::error("{}", error.message);
    return 1;
  };
  if (auto s = set_scheduling(scheduling); !s) spdlog::warn("{}", s.error().message);
  set_torch_threads(threads);
  // Training makes and frees the same few megabytes thousands of times: as maps of their own, each
  // would be zeroed by the kernel anew, a sixth of the time in all.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  options.state_root = state_dir;
  options.session.gate.set_least_requests(gate_requests);
  options.session.gate.set_least_gain(gate_least_gain);
  options.session.buffer_bytes = buffer_mib << 20;
  options.session.buffer_max_age_s = 3600 * retention_hours;
  if (!fingerprint.empty()) {
    auto parsed = fingerprint_from_hex(fingerprint);
    if (!parsed) return fail(parsed.error());
    options.model_fingerprint = *parsed;
  }
  // What a replay publishes is for those who go on with its folder.
  const std::string& kept = replays_gate && !output_dir.empty() ? output_dir : state_dir;
  const KeyFolder key_folder(keys_dir.empty() ? kept + "/keys" : keys_dir);
  if (keys_dir.empty()) {
    if (auto s = key_folder.make(true, true); !s) return fail(s.error());
  }
  auto keys = key_folder.trainer();
  if (!keys) return fail(keys.error());
  options.session.signing_key = keys->signing;
  head.objective = learner.fusion.objective;
  head.cache_bytes = cache_mib << 20;
  if (model_path.empty()) {
    spdlog::info("no --model: the fusion table is trained, without a recurrent head");
  } else {
    auto rows = VocabularyRows::open(model_path);
    if (rows) {
      learner.model = options.session.rows = *rows;
      // A server of another model would fill the head with hidden states that mean something else.
      kernels::ThreadPool pool(1);
      auto model = fingerprint_of(*(*rows)->file(), 0, pool);
      if (!model) return fail(model.error());
      if (options.model_fingerprint && *options.model_fingerprint != *model) {
        return fail(
            {ErrorCode::kInvalidInput, fmt::format("--model-fingerprint: found {}, but {} is {}",
                                                   fingerprint, model_path, to_hex(*model))});
      }
      options.model_fingerprint = *model;
    } else if (rows.error().code == ErrorCode::kNotFound || rows.error().code == ErrorCode::kIo) {
      return fail(rows.error());
    } else {
      spdlog::warn("{}: the fusion table alone is trained", rows.error().message);
    }
  }
  if (!eagle3_dir.empty()) {
    auto checkpoint = read_eagle3(eagle3_dir);
    if (!checkpoint) return fail(checkpoint.error());
    if (!learner.model) {
      return fail(
          {ErrorCode::kInvalidInput, "--eagle3: wanted --model too, the server's GGUF file"});
    }
    // Whether it is this model's is found by making it, as the server would.
    auto weights =
        Eagle3Head::create(*checkpoint, HeadTerms::none(eagle3_parts(*checkpoint)->config.hidden),
                           learner.model);
    if (!weights) return fail(weights.error());
    Eagle3LearnerOptions& eagle3 = learner.eagle3.emplace();
    static_cast<StepOptions&>(eagle3) = head;
    eagle3.start = std::move(*checkpoint);
    eagle3.learning_rate = eagle3_rate;
  }
  options.session.make_learner = learner_factory(learner);
  if (!traces_dir.empty() && replays_gate) {
    gate_replay.traces = traces_dir;
    gate_replay.session = options.session;
    gate_replay.max_requests = offline.max_requests;
    if (!round_ms.empty()) {
      gate_replay.costs = RoundCosts::measured(round_ms, 0, 0);
      gate_replay.costs->head_start = head_ms.empty() ? 0 : head_ms[0];
      gate_replay.costs->head_step = head_ms.empty() ? 0 : head_ms[1];
    }
    gate_replay.output = output_dir;
    gate_replay.json = json_path;
    gate_replay.stopping = &stopping;
    auto s = replay_gate(gate_replay);
    return s ? 0 : fail(s.error());
  }
  if (!traces_dir.empty()) {
    offline.traces = traces_dir;
    offline.learner = learner;
    offline.store_bytes = store_mib << 20;
    offline.json = json_path;
    offline.output = output_dir;
    offline.signing_key = keys->signing;
    offline.stopping = &stopping;
    auto s = train_offline(offline);
    return s ? 0 : fail(s.error());
  }
  endpoints.keys = keys->link;
  auto link = open_trainer_link(endpoints);
  if (!link) return fail(link.error());
  auto created = Trainer::create(options, std::move(link).value(), system_clock());
  if (!created) return fail(created.error());
  Trainer& trainer = **created;
  spdlog::info("traces from {}, weights to {}, state in {}", endpoints.traces, endpoints.weights,
               state_dir);
  while (!stopping) {
    if (trainer.turn()) continue;
    // Rounded up: a wait of nothing would spin until the rest is over.
    const auto wait = std::chrono::ceil<std::chrono::milliseconds>(trainer.idle_for());
    trainer.receiver().wait(wait);
  }
  if (auto s = trainer.checkpoint(); !s) return fail(s.error());
  const TrainerStatus status = trainer.status();
  spdlog::info("stopped at step {}, version {}", status.step, status.current.value);
  return 0;
}
