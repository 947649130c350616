// The gate: a candidate is a frozen snapshot, and only requests that arrive after it score it,
// while the learner trains on. It is published if it is shown to be better than what is served.
// - Statistic: sum of d_i / sum of n_i over requests, where d_i is the difference of log overlap,
//   candidate less served, summed over the request's n_i positions that have candidates.
// - Interval: +- t standard errors of that ratio, requests being the independent units; t is
//   Student's at the probability of the normal quantile kZ.
// - Looks: after every `requests_per_look` scored requests, at most kLooks times. kZ = 2.5 spends
//   2 * (1 - Phi(2.5)) * 4 = 5 % on all looks together (Bonferroni).
// - Promoted: at a look whose lower bound is above 0, if replayed acceptance is not worse by over
//   2 %. Refused: at the last look otherwise; the next snapshot is then taken.
// Pure state machine, no clock and no I/O; its state is plain data for the checkpoint.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/evaluate/fusion_replay.h"

namespace foretoken::trainer {

struct CandidateSnapshot {
  FusionTable table;
  std::int64_t step = 0, trained_tokens = 0, trained_requests = 0;
  double loss = 0;
};

struct RequestScore {
  double positions = 0, log_overlap_difference = 0;
  double candidate_rounds = 0, candidate_accepted = 0, served_rounds = 0, served_accepted = 0;
};

struct GateState {
  FusionTable served;
  std::optional<CandidateSnapshot> candidate;
  std::vector<RequestScore> scores;  // at most kLooks * requests_per_look
  int next_look = 1;
};

class PrequentialGate {
 public:
  static constexpr double kZ = 2.5;
  static constexpr int kLooks = 4;
  static constexpr int kReplayDraft = 4;  // drafted tokens a round when acceptance is replayed
  static constexpr double kAcceptanceMargin = 0.02;

  struct Decision {
    bool promoted = false;
    std::string verdict;
    CandidateSnapshot candidate;
  };

  PrequentialGate(int requests_per_look, const FusionTable& served);

  bool has_candidate() const { return state_.candidate.has_value(); }
  void propose(const CandidateSnapshot& candidate);
  // Scores a request that arrived after the candidate's snapshot; nullopt: no decision yet.
  // After a decision there is no candidate; a promoted one is what is served.
  std::optional<Decision> score(const RequestTrace& trace,
                                const std::vector<FusionPosition>& positions);

  const GateState& state() const { return state_; }
  void restore(GateState state) { state_ = std::move(state); }

 private:
  std::optional<Decision> look();
  const int requests_per_look_;
  GateState state_;
};

}  // namespace foretoken::trainer
