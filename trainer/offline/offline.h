// foretoken train --from-traces DIR: the same learner over recorded segments, without a server: a
// warm start before the first request, and one command for an experiment. Held-out requests are the
// last ones of the recording; they are scored with the served arithmetic by replay
// (runtime/evaluate), all together and by domain, and never trained on. Their candidates are as the
// recording server saw them, so the curve's last point is exact and earlier ones see a fuller
// n-gram store than they would have had; with `stores` all candidates are looked up anew, each
// point's in the store of its day.
#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/protocol/signing.h"
#include "runtime/evaluate/candidate_rebuild.h"
#include "trainer/head/speculator_learner.h"

namespace foretoken::trainer {

struct OfflineOptions {
  std::filesystem::path traces;
  LearnerOptions learner;
  std::size_t max_requests = 0;  // of the recording, held-out ones included; 0: all
  std::size_t held_out = 30;
  std::vector<std::int64_t> evaluate_at;           // tokens; the end is always scored
  bool without_candidates = false;                 // as if no n-gram had been found: the head alone
  std::optional<CandidateRebuild::Stores> stores;  // nullopt: candidates as logged
  std::size_t store_bytes = std::size_t{32} << 20;
  std::filesystem::path json, output;     // empty: the report to standard output; no bundle
  std::optional<SigningKey> signing_key;  // for `output`
  const std::atomic<bool>* stopping = nullptr;
};

Status train_offline(const OfflineOptions& options);

}  // namespace foretoken::trainer
