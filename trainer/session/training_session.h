// Training for one model: its state folder, buffer, learner, gate and versions. A pure state
// machine but for its folder; one thread. Requests are scored by the gate and then shown to the
// learner, in the order of the buffer, one at a time, each read back from disk when its turn comes:
// memory does not grow with a backlog. Training after a kill repeats exactly what the checkpoint
// had not seen.
#pragma once

#include <deque>
#include <filesystem>
#include <map>
#include <memory>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/transport.h"
#include "trainer/buffer/replay_buffer.h"
#include "trainer/gate/prequential_gate.h"
#include "trainer/learner/learner.h"
#include "trainer/publish/checkpoint.h"
#include "trainer/publish/version_store.h"
#include "trainer/publish/weights_sender.h"

namespace foretoken::trainer {

struct SessionOptions {
  SigningKey signing_key;  // every published bundle carries its signature
  GateOptions gate;
  // The target's own rows, which a learned head shares; null: fusion alone is served and judged.
  std::shared_ptr<const VocabularyRows> rows;
  std::size_t buffer_bytes = std::size_t{1} << 30;  // on disk
  double buffer_max_age_s = 0;                      // 0: no limit
  LearnerFactory make_learner;                      // must be set
};

class TrainingSession {
 public:
  // Opens <state_root>/<fingerprint>/trainer and resumes from its checkpoint. Errors: kIo.
  static Result<std::unique_ptr<TrainingSession>> open(const std::filesystem::path& state_root,
                                                       const ModelFingerprint& fingerprint,
                                                       const SessionOptions& options,
                                                       const Clock& clock);

  // Stores a trace. Errors: kInvalidInput ("duplicate: ", "fingerprint: "), kIo
  // ("disk: ").
  Status ingest(const Message& message, const RequestTrace& trace);
  // One slice of training, else scores one request and shows it to the learner; publishes what the
  // gate promotes. false: nothing to do.
  bool work();
  void heard(const ServerHello& hello);
  void expire() { buffer_.expire(); }  // what is too old, where no request comes to push it out
  void pump(Sender& sender) { sender_.pump(sender, clock_.monotonic()); }
  Status checkpoint();  // also written by itself after work

  const ModelFingerprint& fingerprint() const { return fingerprint_; }
  TrainerStatus status() const;                              // run is the caller's to fill in
  std::string standing() const { return gate_.standing(); }  // of the candidates, one line

 private:
  TrainingSession(const std::filesystem::path& folder, const ModelFingerprint& fingerprint,
                  const SessionOptions& options, const Clock& clock, ReplayBuffer buffer,
                  VersionStore versions);
  void resume();
  void resume_candidates(GateState state);
  std::shared_ptr<const LearnedWeights> weights_of(SpeculatorVersion version) const;
  void propose();
  void begin_warm_up();
  void warm_up();  // by one request
  RoundCosts costs_with(const LearnedWeights& candidate) const;
  void conclude(PrequentialGate::Decision& decision);
  void forget_candidates();  // bundles and files of those no longer on trial
  void publish(PrequentialGate::Decision& decision);

  const std::filesystem::path folder_;
  const ModelFingerprint fingerprint_;
  const SessionOptions options_;
  const Clock& clock_;
  ReplayBuffer buffer_;
  VersionStore versions_;
  PrequentialGate gate_;
  RoundCosts server_costs_ = RoundCosts::typical();
  bool head_measured_ = false;  // the server has run one
  WeightsSender sender_;
  std::unique_ptr<Learner> learner_;  // reads buffer_
  std::uint64_t next_to_train_ = 0;   // sequence numbers below were shown to the learner
  std::uint64_t next_to_warm_ = 0;    // while candidates are cold
  SpeculatorVersion published_;       // the newest
  SpeculatorVersion served_;  // what candidates are judged against: older once a server gave up
  std::map<std::uint64_t, Bundle> candidates_;  // on trial, by number, as they would be published
  std::deque<CandidateVerdict> verdicts_;       // the last kMaxVerdicts
  std::chrono::nanoseconds next_checkpoint_{0};
};

}  // namespace foretoken::trainer
