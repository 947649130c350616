// The server's end of the link to the trainer: one thread that sends traces and hellos and receives
// and prepares weights, and another, of the lowest priority, that judges them (version_keeper.h).
// The engine meets them in the ring of TracePublisher alone, so nothing here can hold up a round.
// Lifetime: create -> sink() into Engine::create -> start(engine) -> ... -> stop() -> ~Engine
// -> ~ServerLink.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/transport.h"
#include "runtime/model/vocabulary_rows.h"
#include "runtime/observe/stats.h"
#include "runtime/speculate/head/draft_head.h"
#include "runtime/trace/trace_publisher.h"
#include "runtime/trace/weights_receiver.h"
#include "runtime/versions/shadow_replay.h"
#include "runtime/versions/version_keeper.h"

namespace foretoken {

// What the trainer is told of how the engine is doing. Called on the link thread.
struct ServerActivity {
  std::uint32_t requests_running = 0;
  float busy = 0;               // share of the last second in which the engine ran rounds, 0 to 1
  std::vector<float> round_ms;  // by rows, from 1 on; empty: not measured yet
  float head_start_ms = 0, head_step_ms = 0;  // 0: not measured
  bool pause_trainer = false;                 // a window of plain serving is being measured
};

// The engine as the link sees it. Called on the link's threads (draft_with() for the first time on
// the caller's of start()); must not block.
class LinkedEngine {
 public:
  virtual ~LinkedEngine() = default;
  virtual void draft_with(SpeculatorChoice choice) = 0;  // from now on
  virtual ServerActivity activity() { return {}; }       // for the hello, once a second
  virtual bool idle() const { return true; }             // it runs nothing now
  // A window of plain serving is being measured: the trainer is told at once.
  virtual bool pause_trainer() const { return false; }
  // Empties a key's traffic store, for the notes of `foretoken forget`.
  virtual void forget(const std::string&) {}
};

struct ServerLinkOptions {
  // Both empty: no trainer is expected; the state folder's version is served, traces go to
  // trace_dir or nowhere. Traces wait in memory up to high_water_mark messages while a connected
  // trainer does not read.
  LinkEndpoints endpoints{"", "", 200};
  ModelFingerprint model_fingerprint{};
  TrustedSigners trusted_signers;    // whose bundles are served; empty: nobody's
  std::filesystem::path state_root;  // empty: nothing is kept
  std::filesystem::path trace_dir;   // empty: no segments on disk
  std::size_t trace_dir_max_bytes = std::size_t{1} << 30;
  double trace_dir_max_age_s = 0;   // 0: no limit
  std::size_t ring_capacity = 256;  // requests finished within one turn of the thread (50 ms)
  std::size_t ring_bytes = std::size_t{256} << 20;
  // The target's rows, for bundles with a head; null: only fusion tables are taken.
  std::shared_ptr<const VocabularyRows> vocabulary;
  // The layers that the engine taps; none: the default ones. Heads of others are refused.
  std::optional<HeadTaps> head_taps;
  ShadowReplayOptions shadow;  // costs are of activity()
  VersionKeeperOptions versions;
};

class ServerLink {
 public:
  // Errors: kIo (an endpoint or a folder).
  static Result<std::unique_ptr<ServerLink>> create(const ServerLinkOptions& options,
                                                    const Clock& clock = system_clock());
  // With a link of the caller's own, as a simulation has one: nothing is bound; call turn() instead
  // of start().
  static Result<std::unique_ptr<ServerLink>> create(const ServerLinkOptions& options, Link link,
                                                    const Clock& clock);
  ~ServerLink();

  // The engine's TraceSink (engine.h). Valid while this object lives.
  std::function<void(std::unique_ptr<RequestTrace>)> sink();
  void count_opted_out() noexcept { publisher_.count_opted_out(); }

  // Tells the engine what the state folder says was proven, then starts the threads. The engine is
  // not called any more once stop() returned; idempotent.
  void start(LinkedEngine& engine);
  void stop();

  LinkStats stats() const;  // any thread
  const LinkEndpoints& endpoints() const { return link_.endpoints; }
  VersionKeeper& versions() { return *keeper_; }  // any thread
  const std::optional<StateDir>& state_dir() const { return state_; }

  // For simulation: restore() once, then one turn of the loop at a time, on the caller's thread.
  // What the judge's thread does in start() is done at the end of a turn.
  void restore(LinkedEngine& engine);
  void turn();

 private:
  ServerLink(const ServerLinkOptions& options, Link link, std::optional<StateDir> state,
             std::unique_ptr<VersionKeeper> keeper, std::unique_ptr<TraceSegmentWriter> segments,
             const Clock& clock);
  void pump();
  void say_hello();
  void keep_house();
  void publish_stats();
  void hand_over();
  void judge_in_idle_time();

  const ServerLinkOptions options_;
  const Clock& clock_;
  const std::uint64_t run_;
  Link link_;  // sender and receiver are null without endpoints
  TracePublisher publisher_;
  const std::optional<StateDir> state_;
  std::unique_ptr<VersionKeeper> keeper_;
  WeightsReceiver receiver_;  // link thread
  ShadowReplay shadow_;       // the judge's thread, or the caller's of turn()
  std::optional<std::chrono::nanoseconds> last_hello_, last_housekeeping_;
  // What the judge and operators decided, until the link's thread hands it to the engine; and what
  // the link's thread last measured, for the judge. No other lock is taken under this one.
  std::mutex decided_mutex_;
  std::optional<SpeculatorChoice> decided_;
  RoundCosts costs_ = RoundCosts::typical();
  LinkedEngine* engine_ = nullptr;  // from restore() on
  std::thread thread_, judge_;
  std::atomic<bool> stopping_{false};
  bool paused_ = false;             // as the last hello said
  mutable std::mutex stats_mutex_;  // between the link thread and stats(), never the engine
  LinkStats stats_;
};

}  // namespace foretoken
