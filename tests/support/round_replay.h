// The draft policy's recorded rounds (PolicyLog) once more: the same code as live, told the same,
// makes the same choice. What a live run of this server drafted is thereby shown to be a function
// of its record, several sequences in a round included. Nothing here knows tokens: what a draft
// would have had accepted is PortfolioReplay's. Pure function; any thread.
#pragma once

#include <vector>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "foretoken/protocol/trace_record.h"

namespace foretoken {

struct RoundChoice {
  std::vector<SpeculatorKind> kinds;  // of each token drafted for the request: as long as its draft
  std::vector<float> confidences;
  int head_steps = 0;
  double cost = 0;  // of the whole round as chosen, in units of a round of one row
  // The policy asked for what had not been asked then: it was on its way to another choice.
  bool strayed = false;
  bool operator==(const RoundChoice&) const = default;
};

// What was chosen, as the trace has it.
RoundChoice logged_choice(const RequestTrace& trace, std::size_t round);

// One choice a round of the trace. An error names the request and what its record lacks: no policy
// was recorded (a trace of an older build), or a gap.
Result<std::vector<RoundChoice>> replay_rounds(const RequestTrace& trace);

}  // namespace foretoken
