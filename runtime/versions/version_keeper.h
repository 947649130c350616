// The life of a learned version on the server, as a state machine:
//
//   offered -> canary -> promoted (served) -> previous -> forgotten
//                  \-> rolled back           \-> served again, when its successor does worse
//
// A bundle arrives here with its signature and digest checked. It is prepared (shapes, repacking)
// on the thread that offers it, then serves a share of the requests as *canary* while the version
// that serves is at hand. The judge believes nobody: it replays both versions on the traces of
// finished requests, one at a time, in the server's idle time, off the engine's thread, and tests
// the paired costs any-time-valid (sequential_test.h):
//   promoted     at least kLeastRequests replayed, and shown to be no worse than -margin, while its
//                own requests, as they ran, do not say otherwise
//   rolled back  shown to be slower, by replay or by what its requests cost live, or nothing shown
//                after most_requests: a claim of the trainer's gate that does not hold up here
// A served version is watched in the same way against its predecessor on a sample of requests;
// shown to be slower, it is rolled back by itself. A version that was rolled back is never taken
// again, nor is any number twice. One canary at a time; of the versions that come meanwhile the
// newest waits. Frozen (by an operator), newer ones are refused and the canary is put back.
//
// Everything is in the lineage before it takes effect: restore() serves the last proven version,
// and a canary that a crash cut short starts over. Thread-safe: one lock, held for moves and one
// fsync at most, never while preparing or replaying, and never wanted by the engine. Callbacks are
// called under the lock and must not call back. Clock injected; the same calls give the same life.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/trace_record.h"
#include "foretoken/protocol/transport.h"
#include "runtime/evaluate/sequential_test.h"
#include "runtime/observe/speculator_state.h"
#include "runtime/speculate/learned.h"
#include "runtime/versions/lineage.h"
#include "runtime/versions/state_dir.h"

namespace foretoken {

// Weights that the operator named on the command line (--spec-head), trusted as the model file is:
// served from the first round, under a number of their own, in the lineage as "given". They stay
// what they are as long as their digest does: what was promoted over them serves on, and where they
// were rolled back they are not served again. They live in no file of the state folder.
struct GivenSpeculator {
  std::string kind, digest, source;  // "eagle3", hex, where it is
  std::function<LearnedPointer(SpeculatorVersion)> make;
};

struct VersionKeeperOptions {
  // A quarter of the requests is enough for the live comparison within some hundred requests, and
  // what a bad version costs meanwhile is a quarter of what it would. 0, for tests of the link
  // alone: a version serves as soon as it is received.
  double canary_fraction = 0.25;
  double margin = 0.02;       // no worse than this is good enough: the trainer's gate showed a gain
  double live_margin = 0.05;  // the live arms are different requests: only a clear loss counts
  double alpha = 0.005;       // of a wrong promotion, of a wrong rollback: each, a canary
  int most_requests = 400;    // replayed; then it is decided by the plain 95 % bound
  // The watch looks at an eighth of requests, and starts over after some hundred of them, so that
  // an old gain does not hide a new loss. Ten epochs an hour, err once in a month or two: 1e-4
  // each.
  double watch_sample = 0.125;
  int watch_epoch = 300;
  double watch_alpha = 1e-4;
  // What waits to be replayed, at most. A 135M model's request is about 2 MiB with its features.
  std::size_t queue_requests = 64;
  std::size_t queue_bytes = std::size_t{256} << 20;
  std::optional<GivenSpeculator> given;
};

// What one request's decoding would have cost, in rounds or predicted ms, whichever, for the same
// tokens.
struct PairedCosts {
  double candidate = 0, served = 0;
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

  SpeculatorVersion served() const;
  SpeculatorVersion highest() const;  // numbers up to it are taken
  SpeculatorVersion canary() const;   // or waiting to be one; 0: none
  SpeculatorVersion refused() const;  // the newest that is not wanted, by this run; 0: none
  std::string refused_reason() const;
  bool take_news();  // something changed that the trainer should hear of at once; clears it
  SpeculatorState state() const;

 private:
  struct Held {
    SpeculatorVersion version, parent;
    LearnedPointer weights;
    std::string kind = "none", verdict;
    std::int64_t trained_requests = 0, trained_tokens = 0;
    double loss = 0;
  };
  struct Trial {
    Held held;
    std::chrono::nanoseconds since{0};
    PairedSums replay, live;
    // Live cost (rounds a token) of requests that wait for one of the other arm to be paired with.
    std::deque<double> unpaired_canary, unpaired_served;
  };

  VersionKeeper(const VersionKeeperOptions& options, LearnedPointer shipped,
                std::optional<StateDir> state, Lineage lineage, const Clock& clock);
  static Held held_of(const Bundle& bundle, LearnedPointer weights);
  std::optional<Held> load(SpeculatorVersion version);
  void take_given();
  Held predecessor(SpeculatorVersion version);
  void log(std::string event, const Held& held, std::string reason,
           const PairedSums* judged = nullptr, double alpha = 0.05);
  void publish();
  void begin(Held held);
  void serve(Held held);
  void next();
  void refuse(SpeculatorVersion version, const std::string& reason);
  void compare_live(const RequestTrace& trace);
  void decide();
  void promote(const std::string& reason);
  void end_trial(const std::string& reason);
  void roll_back_served(const std::string& reason, const PairedSums* judged);
  void clean_up();

  const VersionKeeperOptions options_;
  const Clock& clock_;
  const std::optional<StateDir> state_;
  mutable std::mutex mutex_;  // everything below
  VersionKeeperHooks hooks_;
  Lineage lineage_;
  Held shipped_, served_;
  std::optional<Held> given_;
  std::optional<Held> previous_;  // nullopt: nothing before it, it is version 0
  std::optional<Trial> trial_;
  std::optional<Held> waiting_;
  PairedSums watch_;
  std::chrono::nanoseconds served_since_{0};
  struct Queued {
    std::unique_ptr<RequestTrace> trace;
    std::chrono::nanoseconds since;
    std::size_t bytes;
  };
  std::deque<Queued> queue_;
  std::size_t queued_bytes_ = 0;
  SpeculatorVersion refused_, frozen_out_;
  std::string refused_reason_;
  int refusals_logged_ = 0;
  std::int64_t promoted_ = 0, rolled_back_ = 0, refused_count_ = 0, judged_ = 0, dropped_ = 0;
  bool news_ = false;
};

}  // namespace foretoken
