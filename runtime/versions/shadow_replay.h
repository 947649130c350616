// The judge's eyes: two versions of the learned weights, each in the whole portfolio that serves,
// replayed on the same finished request (portfolio_replay.h): what its decoding would have cost
// with the one and with the other, drafts being as long as they pay. Round costs are those this
// server had measured when the pair was first seen, and stay: a test must not change its units
// while it runs. Each one's calibration is learned from the requests replayed, in their order; new
// weights begin with that of the pair before, as live. One thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "runtime/evaluate/portfolio_replay.h"
#include "runtime/versions/version_keeper.h"

namespace foretoken {

struct ShadowReplayOptions {
  SpecType kinds = spec_type("auto");  // what the server may draft with
  int max_draft = 8;
  std::function<RoundCosts()> costs;  // as measured so far; empty: typical ones
};

class ShadowReplay {
 public:
  explicit ShadowReplay(ShadowReplayOptions options) : options_(std::move(options)) {}

  // nullopt: nothing was decoded after the first token.
  std::optional<PairedCosts> replay(const RequestTrace& trace, const LearnedPointer& candidate,
                                    const LearnedPointer& served);

 private:
  const ShadowReplayOptions options_;
  LearnedPointer candidate_weights_, served_weights_;
  std::unique_ptr<PortfolioReplay> candidate_, served_;
  RoundCosts costs_;
};

}  // namespace foretoken
