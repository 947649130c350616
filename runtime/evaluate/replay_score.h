// Replay-exact scoring of a drafter on a logged request. What the target emitted does not depend on
// what was drafted (drafter-invariant sampling), and what a drafter would have proposed at a
// position is a function of the logged candidates, the seed and the position: so whether it would
// have been accepted is known, token by token, without running anything. With the serving table and
// the serving draft length a replay gives the very rounds that were run; with others, the rounds
// that would have been. (A replayed draft reads each position's candidates as logged, when the
// prefix was first known; a live one of other lengths would have looked a few of them up a round
// earlier or later.) Under rejection sampling these drafters' proposals are point masses, accepted
// exactly when they equal the emitted token in law: the same walk is then right in distribution.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "foretoken/protocol/trace_record.h"
#include "runtime/observe/stats.h"
#include "runtime/speculate/fusion_table.h"

namespace foretoken {

// One a generated token: nothing proposed, proposed and wrong, right.
enum class ReplayHit : std::uint8_t { kNothing, kWrong, kRight };

// hits: [trace.generated.size()]. coupled: the request was sampled drafter-invariantly.
void replay_fusion(const RequestTrace& trace, const FusionTable& table, bool coupled,
                   std::vector<ReplayHit>* hits);
void replay_ngram(const RequestTrace& trace, std::vector<ReplayHit>* hits);

// Decode rounds of at most draft_length tokens each. The first generated token came with the prompt
// and starts no round. A draft ends before a position where nothing is proposed.
AcceptanceStats walk_fixed(std::span<const ReplayHit> hits, int draft_length);
// At the logged round starts, with the logged lengths: what this drafter would have had accepted of
// what was asked then. Rounds outside the trace's tokens are skipped.
AcceptanceStats walk_logged(const RequestTrace& trace, std::span<const ReplayHit> hits);

}  // namespace foretoken
