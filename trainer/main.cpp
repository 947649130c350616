// foretoken-trainer: learns the speculator from a server's traces and publishes what the gate lets
// through.
#include <fmt/format.h>
#include <malloc.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <csignal>

#include "trainer/flags/trainer_flags.h"
#include "trainer/ingest/background.h"

namespace foretoken::trainer {
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

int check(const TrainerFlags& flags) {
  const TrainerOptions& daemon = flags.daemon;
  fmt::print(
      "model         {}\nfingerprint   {}\nlearns        {}\ntraces        {}\nweights       {}\n"
      "keys          {}\nstate folder  {}\n",
      flags.model().empty() ? "the server's" : flags.model(),
      daemon.model_fingerprint ? to_hex(*daemon.model_fingerprint) : "the server's",
      flags.learner.eagle3  ? "an EAGLE-3 head and the fusion table"
      : flags.learner.model ? "a recurrent head and the fusion table"
                            : "the fusion table",
      flags.from_traces.empty() ? flags.endpoints.traces : flags.from_traces,
      flags.from_traces.empty() ? flags.endpoints.weights : "none", flags.keys_folder(),
      flags.state_dir());
  return 0;
}

Status run_daemon(const TrainerFlags& flags) {
  auto link = open_trainer_link(flags.endpoints);
  if (!link) return link.error();
  auto created = Trainer::create(flags.daemon, std::move(link).value(), system_clock());
  if (!created) return created.error();
  Trainer& trainer = **created;
  spdlog::info("traces from {}, weights to {}, state in {}", flags.endpoints.traces,
               flags.endpoints.weights, flags.state_dir());
  while (!stopping) {
    if (trainer.turn()) continue;
    // Rounded up: a wait of nothing would spin until the rest is over.
    const auto wait = std::chrono::ceil<std::chrono::milliseconds>(trainer.idle_for());
    trainer.receiver().wait(wait);
  }
  if (auto s = trainer.checkpoint(); !s) return s;
  const TrainerStatus status = trainer.status();
  spdlog::info("stopped at step {}, version {}", status.step, status.current.value);
  return Ok{};
}

int run(int argc, char** argv) {
  Flags flags(
      "foretoken-trainer",
      "Learns foretoken's speculator from a server's traces and publishes better versions to it.",
      "FORETOKEN_TRAINER_CONFIG");
  TrainerFlags options;
  options.add_to(flags);
  if (const auto status = flags.parse(argc, argv)) return *status;
  spdlog::set_level(spdlog::level::from_str(options.log_level));
  spdlog::set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ trainer: %v");
  spdlog::flush_on(spdlog::level::info);
  const auto fail = [](const Error& error) {
    spdlog::error("{}", error.message);
    return 1;
  };
  handle_signals();
  if (auto s = set_scheduling(options.scheduling); !s) spdlog::warn("{}", s.error().message);
  set_torch_threads(options.threads);
  // Training makes and frees the same few megabytes thousands of times: as maps of their own, each
  // would be zeroed by the kernel anew, a sixth of the time in all.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  if (auto s = options.open(!options.check); !s) return fail(s.error());
  if (options.check) return check(options);
  options.offline.stopping = options.gate_replay.stopping = &stopping;
  const Status done = options.from_traces.empty() ? run_daemon(options)
                      : options.gate              ? replay_gate(options.gate_replay)
                                                  : train_offline(options.offline);
  return done ? 0 : fail(done.error());
}

}  // namespace
}  // namespace foretoken::trainer

int main(int argc, char** argv) { return foretoken::trainer::run(argc, argv); }
