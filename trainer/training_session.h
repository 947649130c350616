// Training for one model: its state folder, buffer, learner, gate and versions. A pure state
// machine but for its folder; one thread. Requests are scored by the gate and then learned from, in
// the order of the buffer, in groups of at least LearnerOptions::positions_per_step positions; a
// checkpoint lies between groups, so training after a kill repeats exactly what the checkpoint had
// not seen.
#pragma once

#include <deque>
#include <filesystem>
#include <memory>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/transport.h"
#include "trainer/buffer/replay_buffer.h"
#include "trainer/gate/prequential_gate.h"
#include "trainer/learner.h"
#include "trainer/publish/checkpoint.h"
#include "trainer/publish/version_store.h"
#include "trainer/publish/weights_sender.h"

namespace foretoken::trainer {

struct SessionOptions {
  LearnerOptions learner;
  int publish_every_requests = 16;                  // the gate looks after so many scored requests
  std::size_t buffer_bytes = std::size_t{1} << 30;  // on disk
  std::size_t pending_requests = 1024;  // in memory, not yet trained on; the rest is read back
};

class TrainingSession {
 public:
  // Opens <state_root>/<fingerprint>/trainer and resumes from its checkpoint. Errors: kIo.
  static Result<std::unique_ptr<TrainingSession>> open(const std::filesystem::path& state_root,
                                                       const ModelFingerprint& fingerprint,
                                                       const SessionOptions& options,
                                                       const Clock& clock);

  // Stores a trace and queues it. Errors: kInvalidInput ("duplicate: ", "fingerprint: "), kIo
  // ("disk: ").
  Status ingest(const Message& message, RequestTrace trace);
  // Trains on one group, if one is complete; publishes what the gate promotes. false: nothing to
  // do.
  bool work();
  void heard(const ServerHello& hello);
  void pump(Sender& sender) { sender_.pump(sender, clock_.monotonic()); }
  Status checkpoint();  // also written by itself after work

  const ModelFingerprint& fingerprint() const { return fingerprint_; }
  TrainerStatus status() const;  // run is the caller's to fill in

 private:
  TrainingSession(const std::filesystem::path& folder, const ModelFingerprint& fingerprint,
                  const SessionOptions& options, const Clock& clock, ReplayBuffer buffer,
                  VersionStore versions);
  struct Pending {
    std::uint64_t sequence;
    RequestTrace trace;  // without top logits and taps: `positions` has what is needed
    std::vector<FusionPosition> positions;
  };
  void queue(std::uint64_t sequence, RequestTrace trace);
  void refill();
  void resume();
  void publish(const PrequentialGate::Decision& decision);

  const std::filesystem::path folder_;
  const ModelFingerprint fingerprint_;
  const SessionOptions options_;
  const Clock& clock_;
  ReplayBuffer buffer_;
  VersionStore versions_;
  Learner learner_;
  PrequentialGate gate_;
  WeightsSender sender_;
  std::deque<Pending> pending_;
  std::size_t pending_positions_ = 0;
  std::uint64_t next_to_queue_ = 0;  // sequence numbers below are queued or trained on
  std::uint64_t next_to_train_ = 0;  // ... are trained on: what a checkpoint says
  SpeculatorVersion served_version_;
  std::int64_t trained_tokens_ = 0, trained_requests_ = 0;
  std::string verdict_;
  std::chrono::nanoseconds last_checkpoint_{0};
};

}  // namespace foretoken::trainer
