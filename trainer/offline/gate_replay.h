// foretoken train --from-traces DIR --gate: what the daemon would have made of a recording, request
// by request: the same session (buffer, learner, gate, versions) in a state folder of its own, the
// clock the recording's. What the target emitted and the n-gram candidates do not depend on what
// was served meanwhile, so candidates, verdicts and the requests they came at are those of a live
// run in which the trainer had the time that it is given here. A server's canary is not replayed:
// what is published counts as served.
#pragma once

#include <atomic>
#include <filesystem>
#include <optional>

#include "runtime/speculate/round_costs.h"
#include "trainer/session/training_session.h"

namespace foretoken::trainer {

struct GateReplayOptions {
  std::filesystem::path traces;
  SessionOptions session;
  std::size_t max_requests = 0;  // of the recording; 0: all
  // As a server would say them (head ms 0: not measured); nullopt: as the recording's rounds show.
  std::optional<RoundCosts> costs;
  int slices_per_request = 0;  // of work between two requests; 0: all that is due
  // A state folder, kept, in which the trainer has no state of this model yet; empty: a temporary
  // one.
  std::filesystem::path output;
  std::filesystem::path json;  // empty: standard output
  const std::atomic<bool>* stopping = nullptr;
};

Status replay_gate(const GateReplayOptions& options);

}  // namespace foretoken::trainer
