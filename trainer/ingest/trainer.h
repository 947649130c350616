// The trainer as a state machine over a link: hears servers, ingests traces, works, answers with
// status and weights. One thread calls turn(); nothing in it blocks but disk and arithmetic, so
// that a simulation can run it with a clock and a network of its own.
#pragma once

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "foretoken/protocol/transport.h"
#include "trainer/ingest/pace.h"
#include "trainer/session/training_session.h"

namespace foretoken::trainer {

struct TrainerOptions {
  std::filesystem::path state_root;
  std::optional<ModelFingerprint> model_fingerprint;  // nullopt: that of the server it hears
  SessionOptions session;
  double cpu_share = 1;  // Pace's
};

class Trainer {
 public:
  // With a fingerprint its session is opened at once, and `create` fails where that does.
  static Result<std::unique_ptr<Trainer>> create(const TrainerOptions& options, Link link,
                                                 const Clock& clock);

  // One turn: receive what is there (bounded), one slice of training unless it is time to rest,
  // send what is due. false: nothing was there to do; wait for the receiver, at most idle_for().
  bool turn();
  // Until there may be work again, or a status is due; at most 250 ms, which is what a status, due
  // every second, may be late by.
  std::chrono::nanoseconds idle_for() const;
  Receiver& receiver() { return *link_.receiver; }
  Status checkpoint() { return session_ ? session_->checkpoint() : Status{Ok{}}; }

  TrainerStatus status() const;
  const std::map<std::string, std::int64_t>& refused() const { return refused_; }  // by reason

 private:
  Trainer(const TrainerOptions& options, Link link, const Clock& clock);
  void handle(const Message& message);
  void hear(const ServerHello& hello);
  bool paused() const;
  void refuse(const Error& error);
  Status open_session(const ModelFingerprint& fingerprint);

  const TrainerOptions options_;
  Link link_;
  const Clock& clock_;
  const std::uint64_t run_;
  std::unique_ptr<TrainingSession> session_;
  std::map<std::string, std::int64_t> refused_;
  std::optional<std::uint64_t> server_run_;
  std::optional<std::chrono::nanoseconds> last_status_, paused_until_;
  Pace pace_;
  std::chrono::nanoseconds rest_until_{0};
};

}  // namespace foretoken::trainer
