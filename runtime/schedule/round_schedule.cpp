#include "runtime/schedule/round_schedule.h"

#include <algorithm>

namespace foretoken {
namespace {

// Room for `sequence`, by preempting younger ones. False: nothing younger is left, and it has been
// preempted itself (only possible while an older one runs: no request is longer than what the whole
// pool holds).
bool make_room(std::size_t sequence, std::int64_t length, PageBudget& pages, RoundSchedule& plan) {
  while (!pages.reserve(sequence, length)) {
    const std::size_t youngest = --plan.n_running;
    pages.preempt(youngest);
    if (youngest == sequence) return false;
  }
  return true;
}

}  // namespace

std::int64_t first_length(std::int64_t tokens, std::int64_t computed, const RoundLimits& limits) {
  return std::min(tokens + 1, computed + limits.max_rows);
}

void plan_decode(std::span<const SequenceState> running, const RoundLimits& limits,
                 PageBudget& pages, RoundSchedule& plan) {
  plan.decode.clear();
  plan.prefill.clear();
  plan.n_running = running.size();
  plan.has_prefill = false;
  std::int64_t prefill_left = 0;
  for (std::size_t i = 0; i < plan.n_running; ++i) {
    const SequenceState& s = running[i];
    if (!s.decodes) {
      plan.has_prefill = true;
      prefill_left += s.tokens - s.computed;
      continue;
    }
    // The target's own token is one of those that may come.
    const int max_draft =
        s.drafts ? int(std::clamp<std::int64_t>(s.may_come - 1, 0, limits.max_draft)) : 0;
    if (make_room(i, s.tokens + max_draft, pages, plan)) plan.decode.push_back({i, max_draft});
  }
  const std::int64_t free_rows =
      limits.max_rows - std::int64_t(plan.decode.size()) * (1 + limits.max_draft);
  plan.prefill_rows = std::min(prefill_left, free_rows);
}

void plan_prefill(std::span<const SequenceState> running, const RoundLimits& limits,
                  std::int64_t rows, PageBudget& pages, RoundSchedule& plan) {
  for (std::size_t i = 0; i < plan.n_running; ++i) {
    const SequenceState& s = running[i];
    if (s.decodes) continue;
    const std::int64_t n = std::min(limits.max_rows - rows, s.prefill_end - s.computed);
    if (n <= 0) return;
    if (!pages.reserve(i, s.computed + n)) {
      // Those younger than this one may have rows in this round: it waits for the next instead.
      if (!plan.decode.empty() || !plan.prefill.empty()) continue;
      if (!make_room(i, s.computed + n, pages, plan)) return;
    }
    plan.prefill.push_back({i, int(n)});
    rows += n;
  }
}

}  // namespace foretoken
