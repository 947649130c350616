#include "trainer/gate/prequential_gate.h"

#include <fmt/format.h>

#include <cmath>

namespace foretoken::trainer {
namespace {

// Student's t at the probability of the normal quantile z, by Cornish and Fisher's expansion:
// within 2 % of the exact value from 5 degrees of freedom on.
double t_quantile(double z, double degrees) {
  const double z3 = z * z * z, z5 = z3 * z * z;
  return z + (z3 + z) / (4 * degrees) + (5 * z5 + 16 * z3 + 3 * z) / (96 * degrees * degrees);
}

}  // namespace

PrequentialGate::PrequentialGate(int requests_per_look, const FusionTable& served)
    : requests_per_look_(requests_per_look) {
  state_.served = served;
}

void PrequentialGate::propose(const CandidateSnapshot& candidate) {
  state_.candidate = candidate;
  state_.scores.clear();
  state_.next_look = 1;
}

std::optional<PrequentialGate::Decision> PrequentialGate::score(
    const RequestTrace& trace, const std::vector<FusionPosition>& positions) {
  if (!state_.candidate || positions.empty()) return std::nullopt;
  RequestScore score;
  score.positions = double(positions.size());
  for (const FusionPosition& position : positions) {
    score.log_overlap_difference +=
        log_overlap(position, state_.candidate->table) - log_overlap(position, state_.served);
  }
  const ReplayCounts candidate = replay_fusion(trace, state_.candidate->table, kReplayDraft);
  const ReplayCounts served = replay_fusion(trace, state_.served, kReplayDraft);
  score.candidate_rounds = double(candidate.rounds);
  score.candidate_accepted = double(candidate.accepted);
  score.served_rounds = double(served.rounds);
  score.served_accepted = double(served.accepted);
  state_.scores.push_back(score);
  if (int(state_.scores.size()) < requests_per_look_ * state_.next_look) return std::nullopt;
  return look();
}

std::optional<PrequentialGate::Decision> PrequentialGate::look() {
  const double n = double(state_.scores.size());
  RequestScore sum;
  for (const RequestScore& s : state_.scores) {
    sum.positions += s.positions;
    sum.log_overlap_difference += s.log_overlap_difference;
    sum.candidate_rounds += s.candidate_rounds;
    sum.candidate_accepted += s.candidate_accepted;
    sum.served_rounds += s.served_rounds;
    sum.served_accepted += s.served_accepted;
  }
  const double mean = sum.log_overlap_difference / sum.positions;
  double squares = 0;  // of the ratio estimator's residuals, one a request
  for (const RequestScore& s : state_.scores) {
    const double residual = s.log_overlap_difference - mean * s.positions;
    squares += residual * residual;
  }
  const double error = n > 1 ? std::sqrt(squares * n / (n - 1)) / sum.positions : 0;
  const double margin = n > 1 ? t_quantile(kZ, n - 1) * error : INFINITY;
  const double low = mean - margin, high = mean + margin;
  const auto length = [](double accepted, double rounds) {
    return rounds > 0 ? 1 + accepted / rounds : 1.0;
  };
  const double candidate_length = length(sum.candidate_accepted, sum.candidate_rounds);
  const double served_length = length(sum.served_accepted, sum.served_rounds);

  const bool better = low > 0;
  const bool acceptance_holds = candidate_length >= (1 - kAcceptanceMargin) * served_length;
  const bool last = state_.next_look >= kLooks;
  const std::string figures = fmt::format(
      "log overlap {:+.4f} [{:+.4f}, {:+.4f}] nats a position, replayed acceptance length {:.3f} "
      "-> {:.3f}, "
      "over {} requests ({} positions) that arrived after the snapshot, look {} of {}",
      mean, low, high, served_length, candidate_length, state_.scores.size(), sum.positions,
      state_.next_look, kLooks);
  ++state_.next_look;
  if (!(better && acceptance_holds) && !last) return std::nullopt;
  Decision decision;
  decision.candidate = *state_.candidate;
  decision.promoted = better && acceptance_holds;
  decision.verdict = (decision.promoted ? "promoted: "
                      : better          ? "refused, acceptance is worse: "
                                        : "refused, not shown to be better: ") +
                     figures;
  if (decision.promoted) state_.served = state_.candidate->table;
  state_.candidate.reset();
  state_.scores.clear();
  state_.next_look = 1;
  return decision;
}

}  // namespace foretoken::trainer
