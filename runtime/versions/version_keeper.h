// Keeps the learned versions of a server: puts the life (version_life.h), the evidence
// (version_trial.h), the files (state_dir.h) and the lineage together, and tells the engine what
// drafts. A bundle arrives with its signature and digest checked, is prepared (shapes, repacking)
// on the thread that offers it, then serves a share of the requests as *canary*. The judge believes
// nobody: in the server's idle time it replays both versions on finished requests, off the engine's
// thread, and tests the paired costs any-time-valid:
//   promoted     at least kLeastRequests replayed, shown to be no worse than -margin, and its own
//                requests, as they ran, do not say otherwise
//   rolled back  shown to be slower, by replay or live, or nothing shown after most_requests
// A served version is watched in the same way against its predecessor on a sample of requests.
// Frozen (by an operator), newer ones are refused and the canary is put back.
// Everything is in the lineage before it takes effect: restore() serves the last proven version,
// and a canary that a crash cut short starts over. Thread-safe: one lock, held for moves and one
// fsync at most, never while preparing or replaying, and never wanted by the engine. Callbacks are
// called under the lock and must not call back. Clock injected; the same calls give the same life.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/trace_record.h"
#include "foretoken/protocol/transport.h"
#include "runtime/observe/speculator_state.h"
#include "runtime/versions/replay_queue.h"
#include "runtime/versions/state_dir.h"
#include "runtime/versions/version_life.h"
#include "runtime/versions/version_trial.h"

namespace foretoken {

// Weights that the operator named on the command line (--spec-head), trusted as the model file is:
// served from the first round, under a number of their own, in the lineage as "given". They stay
// what they are as long as their digest does: what was promoted over them serves on, and where they
// were rolled back they are not served again. They live in no file of the state folder.
struct GivenSpeculator {
  std::string kind, digest, source;  // "eagle3", hex, where it is
  std::function<LearnedPointer(SpeculatorVersion)> make;
};

struct VersionKeeperOptions : TrialRules {
  // A quarter of the requests is enough for the live comparison within some hundred requests, and
  // what a bad version costs meanwhile is a quarter of what it would. 0, for tests of the link
  // alone: a version serves as soon as it is received.
  double canary_fraction = 0.25;
  double watch_sample = 0.125;  // of requests, while a served version is watched
  // What waits to be replayed, at most. A 135M model's request is about 2 MiB with its features.
  std::size_t queue_requests = 64;
  std::size_t queue_bytes = std::size_t{256} << 20;
  std::optional<GivenSpeculator> given;
};

struct VersionKeeperHooks {
  // The state folder's bytes are as untrusted as the wire's: digest, signature, fingerprint.
  std::function<Result<Bundle>(std::span<const std::byte>)> parse;
  // Bundle -> weights. Errors begin with the reason: "kind: ", "shape: ", "non-finite: ".
  std::function<Result<LearnedPointer>(const Bundle&)> prepare;
  // nullopt: this request says nothing (too short, features missing).
  std::function<std::optional<PairedCosts>(const RequestTrace&, const LearnedPointer& candidate,
                                           const LearnedPointer& served)>
      replay;
  std::function<void(SpeculatorChoice)> publish;  // to the engine
};

class VersionKeeper {
  auto locked(const auto& look) const {
    const std::lock_guard lock(mutex_);
    return look();
  }

 public:
  // shipped: version 0. state: nullopt keeps nothing across restarts.
  static Result<std::unique_ptr<VersionKeeper>> create(const VersionKeeperOptions& options,
                                                       LearnedPointer shipped,
                                                       std::optional<StateDir> state,
                                                       const Clock& clock);

  // Publishes the last proven version. Damaged files are set aside; then it is the one before.
  void restore(VersionKeeperHooks hooks);

  // One thread at a time. Errors name why it is not taken: "version: ", "frozen: ", and prepare's.
  // The version that serves, is on trial or waits, again, is Ok.
  Status offer(const Bundle& bundle, std::span<const std::byte> bytes);

  // A finished request; replayed later, or dropped.
  void observe(std::unique_ptr<RequestTrace> trace);
  // Replays one request and acts on it; false: nothing waits. One thread at a time.
  bool judge();
  // How long the oldest request has waited for judge(); nullopt: none does.
  std::optional<std::chrono::nanoseconds> waiting() const;

  // Operators. rollback: to the previous proven version, else 0; a canary is rolled back with it.
  // Errors: kNotFound (nothing was ever learned).
  Status rollback(const std::string& reason);
  void freeze();
  void unfreeze();

  SpeculatorVersion served() const {
    return locked([&] { return life_.served().version; });
  }
  SpeculatorVersion highest() const {  // numbers up to it are taken
    return locked([&] { return life_.known().highest; });
  }
  SpeculatorVersion canary() const {  // or waiting to be one; 0: none
    return locked([&] { return life_.newest_tried(); });
  }
  SpeculatorVersion refused() const {  // the newest that is not wanted, by this run; 0: none
    return locked([&] { return life_.refused(); });
  }
  std::string refused_reason() const {
    return locked([&] { return life_.refused_reason(); });
  }
  bool take_news() {  // something changed that the trainer should hear of at once; clears it
    return locked([&] { return life_.take_news(); });
  }
  SpeculatorState state() const;

 private:
  VersionKeeper(const VersionKeeperOptions& options, LearnedPointer shipped,
                std::optional<StateDir> state, Lineage lineage, const Clock& clock);
  std::optional<HeldVersion> load(SpeculatorVersion version);
  std::optional<HeldVersion> predecessor();
  void take_given();
  void record(LineageEvents events);
  void publish();
  void serves_anew();
  void begin_next();
  void decide();
  void promote(const std::string& reason);
  void end_trial(const std::string& reason);
  void roll_back_served(const std::string& reason, const PairedSums& judged);
  void clean_up();

  const VersionKeeperOptions options_;
  const Clock& clock_;
  const std::optional<StateDir> state_;
  mutable std::mutex mutex_;  // everything below
  VersionKeeperHooks hooks_;
  Lineage lineage_;
  VersionLife life_;
  std::optional<HeldVersion> given_;
  VersionTrial trial_;  // of the canary
  VersionWatch watch_;  // of the served version against the previous one
  std::chrono::nanoseconds served_since_{0}, canary_since_{0};
  ReplayQueue queue_;
  std::int64_t judged_ = 0, dropped_ = 0;
};

}  // namespace foretoken
