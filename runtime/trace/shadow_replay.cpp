#include "runtime/trace/shadow_replay.h"

namespace foretoken {

std::optional<PairedCosts> ShadowReplay::replay(const RequestTrace& trace,
                                                const LearnedPointer& candidate,
                                                const LearnedPointer& served) {
  if (candidate != candidate_weights_ || served != served_weights_) {
    candidate_weights_ = candidate;
    served_weights_ = served;
    candidate_ = std::make_unique<PortfolioReplay>(options_.kinds, candidate.get());
    served_ = std::make_unique<PortfolioReplay>(options_.kinds, served.get());
    costs_ = options_.costs ? options_.costs() : RoundCosts::typical();
  }
  const PortfolioWalk a = candidate_->walk_costed(trace, options_.max_draft, costs_);
  const PortfolioWalk b = served_->walk_costed(trace, options_.max_draft, costs_);
  if (!(a.predicted_ms > 0) || !(b.predicted_ms > 0)) return std::nullopt;
  return PairedCosts{a.predicted_ms, b.predicted_ms};
}

}  // namespace foretoken
