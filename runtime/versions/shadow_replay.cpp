#include "runtime/versions/shadow_replay.h"

namespace foretoken {

std::optional<PairedCosts> ShadowReplay::replay(const RequestTrace& trace,
                                                const LearnedPointer& candidate,
                                                const LearnedPointer& served) {
  if (candidate != candidate_weights_ || served != served_weights_) {
    const auto replay_of = [&](const LearnedPointer& weights) {
      auto replay = std::make_unique<PortfolioReplay>(options_.kinds, weights.get());
      const auto& known = weights == served_weights_ ? served_ : candidate_;
      if (known) replay->set_calibration(known->calibration());
      return replay;
    };
    auto of_candidate = replay_of(candidate), of_served = replay_of(served);
    candidate_ = std::move(of_candidate);
    served_ = std::move(of_served);
    candidate_weights_ = candidate;
    served_weights_ = served;
    costs_ = options_.costs ? options_.costs() : RoundCosts::typical();
  }
  const PortfolioWalk a = candidate_->walk_costed(trace, options_.max_draft, costs_);
  const PortfolioWalk b = served_->walk_costed(trace, options_.max_draft, costs_);
  if (!(a.predicted_ms > 0) || !(b.predicted_ms > 0)) return std::nullopt;
  return PairedCosts{a.predicted_ms, b.predicted_ms};
}

}  // namespace foretoken
