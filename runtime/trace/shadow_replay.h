// The judge's eyes: two versions of the learned weights replayed on the same finished request: how
// many decode rounds it would have taken with the one and with the other, drafting a fixed number
// of tokens a round. A function of what was logged alone. One thread.
#pragma once

#include <optional>

#include "runtime/trace/version_keeper.h"

namespace foretoken {

class ShadowReplay {
 public:
  explicit ShadowReplay(int draft_length) : draft_length_(draft_length) {}

  // nullopt: nothing was decoded after the first token.
  std::optional<PairedCosts> replay(const RequestTrace& trace, const LearnedPointer& candidate,
                                    const LearnedPointer& served);

 private:
  const int draft_length_;
};

}  // namespace foretoken
