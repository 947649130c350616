#include "runtime/trace/server_link.h"

#include <fmt/ranges.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cmath>

#include "foretoken/protocol/failure.h"
#include "runtime/speculate/learned.h"
#include "runtime/trace/traffic_files.h"

namespace foretoken {
namespace {

constexpr std::chrono::seconds kHelloInterval{1}, kHousekeepingInterval{1};
// The engine does not wake the thread (that would be a system call in a round), so it looks by
// itself: 20 times a second costs about 0.1 % of a core and delays a trace by 25 ms on average.
constexpr std::chrono::milliseconds kTurnInterval{50};

// Stands where no trainer is expected: traces may still go to disk.
class NoSender final : public Sender {
 public:
  bool try_send(Message) override { return false; }
  bool ready() override { return false; }
};

}  // namespace

Result<std::unique_ptr<ServerLink>> ServerLink::create(const ServerLinkOptions& options,
                                                       const Clock& clock) {
  if (options.endpoints.traces.empty() != options.endpoints.weights.empty()) {
    return Error{ErrorCode::kInvalidInput,
                 "link: give both endpoints, traces and weights, or neither"};
  }
  Link link;
  if (!options.endpoints.traces.empty()) {
    auto opened = open_server_link(options.endpoints);
    if (!opened) return opened.error();
    link = std::move(opened).value();
  }
  return create(options, std::move(link), clock);
}

Result<std::unique_ptr<ServerLink>> ServerLink::create(const ServerLinkOptions& options, Link link,
                                                       const Clock& clock) {
  std::optional<StateDir> state;
  if (!options.state_root.empty()) {
    auto opened = StateDir::open(options.state_root, options.model_fingerprint);
    if (!opened) return opened.error();
    state = std::move(opened).value();
  }
  std::unique_ptr<TraceSegmentWriter> segments;
  if (!options.trace_dir.empty()) {
    SegmentOptions segment_options;
    segment_options.max_total_bytes = options.trace_dir_max_bytes;
    segment_options.max_age_s = options.trace_dir_max_age_s;
    segment_options.segment_bytes =
        std::min(segment_options.segment_bytes, options.trace_dir_max_bytes / 4);
    auto opened = TraceSegmentWriter::open(options.trace_dir, segment_options);
    if (!opened) return opened.error();
    segments = std::move(opened).value();
  }
  auto keeper = VersionKeeper::create(options.versions, initial_weights(), state, clock);
  if (!keeper) return keeper.error();
  if (!link.sender) link.sender = std::make_unique<NoSender>();
  return std::unique_ptr<ServerLink>(new ServerLink(
      options, std::move(link), std::move(state), std::move(*keeper), std::move(segments), clock));
}

ServerLink::ServerLink(const ServerLinkOptions& options, Link link, std::optional<StateDir> state,
                       std::unique_ptr<VersionKeeper> keeper,
                       std::unique_ptr<TraceSegmentWriter> segments, const Clock& clock)
    : options_(options),
      clock_(clock),
      run_(random_run_id()),
      link_(std::move(link)),
      publisher_(run_, options.ring_capacity, options.ring_bytes, std::move(segments)),
      state_(std::move(state)),
      keeper_(std::move(keeper)),
      receiver_(options.model_fingerprint, options.trusted_signers, *keeper_, clock),
      shadow_([&] {
        ShadowReplayOptions shadow = options.shadow;
        shadow.costs = [this] {
          const std::lock_guard lock(decided_mutex_);
          return costs_;
        };
        return shadow;
      }()) {}

ServerLink::~ServerLink() { stop(); }

std::function<void(std::unique_ptr<RequestTrace>)> ServerLink::sink() {
  return [this](std::unique_ptr<RequestTrace> trace) { publisher_.push(std::move(trace)); };
}

void ServerLink::restore(LinkedEngine& engine) {
  VersionKeeperHooks hooks;
  hooks.parse = [this](std::span<const std::byte> bytes) { return receiver_.parse(bytes); };
  hooks.prepare = [this](const Bundle& bundle) -> Result<LearnedPointer> {
    auto weights = learned_from_bundle(bundle, options_.vocabulary);
    if (!weights || !(*weights)->head) return weights;
    const HeadTaps& found = (*weights)->head->taps();
    const HeadTaps wanted = options_.head_taps.value_or(head_taps(options_.vocabulary->n_layers()));
    if (found == wanted) return weights;
    return failure(ErrorCode::kInvalidInput,
                   "taps: the head reads layers [{}], this server taps [{}]",
                   fmt::join(found, ", "), fmt::join(wanted, ", "));
  };
  hooks.replay = [this](const RequestTrace& trace, const LearnedPointer& candidate,
                        const LearnedPointer& served) {
    return shadow_.replay(trace, candidate, served);
  };
  hooks.publish = [this](SpeculatorChoice choice) {
    const std::lock_guard lock(decided_mutex_);
    decided_ = std::move(choice);
  };
  engine_ = &engine;
  keeper_->restore(std::move(hooks));
  hand_over();
  publish_stats();
}

void ServerLink::start(LinkedEngine& engine) {
  restore(engine);
  judge_ = std::thread([this] { judge_in_idle_time(); });
  pthread_setname_np(judge_.native_handle(), "judge");
  thread_ = std::thread([this] {
    while (!stopping_.load(std::memory_order_relaxed)) {
      turn();
      if (link_.receiver) {
        link_.receiver->wait(kTurnInterval);
      } else {
        std::this_thread::sleep_for(kTurnInterval);
      }
    }
    pump();  // what finished last
    publish_stats();
  });
}

void ServerLink::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  if (thread_.joinable()) thread_.join();
  if (judge_.joinable()) judge_.join();
}

// Replays in the engine's gaps; where there are none, a request that has waited kPatience is
// replayed all the same, in the time that the scheduler gives to the idle class.
void ServerLink::judge_in_idle_time() {
  constexpr std::chrono::seconds kPatience{5};
  sched_param none{};
  // Linux's idle class: runs when nobody else wants the core. Where it is refused, the gaps remain.
  (void)pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
  while (!stopping_.load(std::memory_order_relaxed)) {
    const auto waiting = keeper_->waiting();
    const bool gap = engine_->idle();
    if (!waiting || (!gap && *waiting < kPatience) || !keeper_->judge())
      std::this_thread::sleep_for(kTurnInterval);
  }
}

// Handing over takes the engine's lock for a moment: not on the judge's thread, which may be kept
// off its core while it holds it.
void ServerLink::hand_over() {
  std::optional<SpeculatorChoice> decided;
  {
    const std::lock_guard lock(decided_mutex_);
    decided.swap(decided_);
  }
  if (decided) engine_->draft_with(std::move(*decided));
}

void ServerLink::pump() {
  publisher_.pump(
      *link_.sender, receiver_.trainer().has_value(),
      [this](std::unique_ptr<RequestTrace> trace) { keeper_->observe(std::move(trace)); });
}

void ServerLink::keep_house() {
  const auto now = clock_.monotonic();
  if (last_housekeeping_ && now - *last_housekeeping_ < kHousekeepingInterval) return;
  last_housekeeping_ = now;
  publisher_.expire();
  if (state_) {
    read_forget_notes(state_->folder(),
                      [this](const std::string& key_id) { engine_->forget(key_id); });
  }
}

void ServerLink::turn() {
  pump();
  keep_house();
  if (link_.receiver) {
    // At most this many a turn, so that a flood of messages cannot keep traces from leaving.
    constexpr int kMessagesPerTurn = 64;
    for (int i = 0; i < kMessagesPerTurn; ++i) {
      const auto message = link_.receiver->try_receive();
      if (!message) break;
      receiver_.handle(*message);
    }
    const auto now = clock_.monotonic();
    const bool of_versions = keeper_->take_news();
    const bool news = receiver_.take_news() || of_versions;
    const bool pause = engine_->pause_trainer();
    if (pause != paused_ || news || !last_hello_ || now - *last_hello_ >= kHelloInterval) {
      paused_ = pause;
      last_hello_ = now;
      say_hello();
    }
  }
  if (!judge_.joinable()) {
    while (keeper_->judge()) {
    }
  }
  hand_over();
  publish_stats();
}

void ServerLink::say_hello() {
  ServerHello hello;
  hello.run = run_;
  hello.model_fingerprint = options_.model_fingerprint;
  hello.served = keeper_->served();
  hello.canary = keeper_->canary();
  hello.highest = keeper_->highest();
  hello.refused = receiver_.refused();
  hello.refused_reason = receiver_.refused_reason();
  ServerActivity activity = engine_->activity();
  hello.requests_running = activity.requests_running;
  hello.busy = std::clamp(activity.busy, 0.0f, 1.0f);
  hello.round_ms = std::move(activity.round_ms);
  hello.head_start_ms = activity.head_start_ms;
  hello.head_step_ms = activity.head_step_ms;
  {
    const std::lock_guard lock(decided_mutex_);
    costs_ = RoundCosts::measured(hello.round_ms, hello.head_start_ms, hello.head_step_ms);
  }
  hello.pause = paused_;
  hello.traces_sent = std::uint64_t(publisher_.sent());
  hello.traces_dropped = std::uint64_t(publisher_.dropped_total());
  link_.sender->try_send(serialize(hello));  // the next one comes in a second
}

void ServerLink::publish_stats() {
  LinkStats stats;
  stats.traces_sent = publisher_.sent();
  stats.traces_dropped = publisher_.dropped();
  stats.bundles_received = receiver_.bundles_received();
  stats.bundles_rejected = receiver_.rejected();
  if (link_.peers_refused) stats.peers_refused = link_.peers_refused->load();
  stats.speculator = keeper_->state();
  if (const auto trainer = receiver_.trainer()) {
    stats.trainer_connected = true;
    stats.trainer_step = trainer->step;
    if (!std::isnan(trainer->loss)) stats.trainer_loss = trainer->loss;
    stats.trainer_verdict = trainer->verdict;
    stats.trainer_verdicts = trainer->verdicts;
  }
  const std::lock_guard lock(stats_mutex_);
  stats_ = std::move(stats);
}

LinkStats ServerLink::stats() const {
  const std::lock_guard lock(stats_mutex_);
  return stats_;
}

}  // namespace foretoken
