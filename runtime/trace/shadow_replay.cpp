#include "runtime/trace/shadow_replay.h"

#include "runtime/evaluate/replay_score.h"
#include "runtime/speculate/learned.h"

namespace foretoken {

std::optional<PairedCosts> ShadowReplay::replay(const RequestTrace& trace,
                                                const LearnedPointer& candidate,
                                                const LearnedPointer& served) {
  const auto rounds = [&](const LearnedWeights& weights) {
    std::vector<ReplayHit> hits;
    replay_fusion(trace, weights.fusion, true, &hits);
    return static_cast<double>(walk_fixed(hits, draft_length_).rounds);
  };
  const PairedCosts costs{rounds(*candidate), rounds(*served)};
  if (costs.candidate <= 0 || costs.served <= 0) return std::nullopt;
  return costs;
}

}  // namespace foretoken
