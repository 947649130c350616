// The flags of foretoken-trainer, typed: what the daemon is started with, and what a run over a
// recording is. Values only; open() reads the files they name.
#pragma once

#include <string>
#include <vector>

#include "foretoken/protocol/keys.h"
#include "runtime/flags/flags.h"
#include "trainer/head/speculator_learner.h"
#include "trainer/ingest/trainer.h"
#include "trainer/offline/gate_replay.h"
#include "trainer/offline/offline.h"

namespace foretoken::trainer {

struct TrainerFlags {
  LinkEndpoints endpoints{"tcp://127.0.0.1:7461", "tcp://127.0.0.1:7462", 200};
  TrainerOptions daemon;
  LearnerOptions learner;
  std::string scheduling = "idle", log_level = "info";
  int threads = 1;
  bool check = false;
  std::string from_traces;  // empty: the daemon
  bool gate = false;        // of a recording: the daemon's life instead of a curve
  OfflineOptions offline;
  GateReplayOptions gate_replay;

  void add_to(Flags& flags);
  // Reads keys, model and head and completes the options above. Errors name the flag or the file.
  // make_keys: those in the state folder are made where there are none.
  Status open(bool make_keys);
  // Of the state directory that this run goes on with; or --keys.
  std::string keys_folder() const;
  const std::string& state_dir() const { return state_dir_; }
  const std::string& model() const { return model_; }

 private:
  void add_daemon(Flags& flags);
  void add_head(Flags& flags);
  void add_recording(Flags& flags);
  Status open_model();
  Status open_eagle3();

  std::string keys_, state_dir_, fingerprint_, model_, eagle3_, json_, output_;
  std::size_t buffer_mib_ = 1024, cache_mib_ = 256, store_mib_ = 32;
  double retention_hours_ = 0, gate_least_gain_ = 0, eagle3_rate_ = 0;
  int gate_requests_ = kLeastRequests;
  std::vector<float> round_ms_, head_ms_;
};

}  // namespace foretoken::trainer
