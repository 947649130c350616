// Does a head read the layers it was trained on? The commonest way in which a published head fails
// is silent: configurations count layers by their inputs or by their outputs, and a head that reads
// one layer too early or too late still runs, and is hardly ever right. So a head that comes from
// outside is put to a probe: a text goes through the target once, and at each position the head's
// first proposal is compared to what the target says there, with the features that the
// configuration names and with those of the layers one before and one after. Not the engine's
// thread: one prefill of the probe, and three steps of the head a position.
#pragma once

#include <span>
#include <vector>

#include "foretoken/kernels/thread_pool.h"
#include "runtime/model/model.h"
#include "runtime/speculate/head/draft_head.h"

namespace foretoken {

// As many positions of the probe are scored, after as many that only give it context; 256 tell 10 %
// from 20 % of acceptance with certainty.
inline constexpr std::size_t kTapProbeTokens = 256, kTapProbeContext = 64;

struct TapCheck {
  struct Shift {
    int by = 0;               // layers later
    HeadTaps layers{};        // outputs of these
    std::vector<bool> right;  // at each position
    int hits() const;
  };
  std::vector<Shift> shifts;  // the first is as configured; those past an end are left out
};

// text: of the target's vocabulary, at least kTapProbeContext and a few tokens long.
Result<TapCheck> check_taps(const Model& model, const DraftHead& head,
                            std::span<const TokenId> text, kernels::ThreadPool& pool);

// An error "taps: ..." that names the layers to configure, where another shift is shown to be right
// more often: by the positions at which only one of the two is, three standard deviations of them.
Status judge_taps(const TapCheck& check);

}  // namespace foretoken
