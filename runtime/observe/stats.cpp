#include "runtime/observe/stats.h"

namespace foretoken {

void AcceptanceStats::add(const AcceptanceStats& o) {
  rounds += o.rounds;
  drafting_rounds += o.drafting_rounds;
  drafted += o.drafted;
  accepted += o.accepted;
  emitted += o.emitted;
  for (std::size_t i = 0; i < drafted_at.size(); ++i) {
    drafted_at[i] += o.drafted_at[i];
    accepted_at[i] += o.accepted_at[i];
  }
}

}  // namespace foretoken
