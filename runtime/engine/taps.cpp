// Hidden states of what was committed: rounded once, to the trace and to the head alike.
#include "runtime/engine/core.h"

namespace foretoken {

bool EngineCore::wants_features(const Sequence& s) const {
  return s.trace || (!round_.plain && s.request.speculation && portfolio_->uses_head(s.learned));
}

// A request that comes back to pages of its own, as after a preemption: the head's ring holds what
// its log does, and so what a replay will see.
void EngineCore::restore_features(const Sequence& s) {
  if (!portfolio_->keeps_features()) return;
  const RequestTrace& trace = *s.trace;
  const auto width = std::size_t(kHeadTaps * model_->config().hidden);
  const std::int64_t end = std::min(s.computed(), trace.tap_first + trace.tap_positions());
  for (std::int64_t at = std::max<std::int64_t>(trace.tap_first, end - kHeadWindow); at < end;
       ++at) {
    const auto row = std::size_t(at - trace.tap_first);
    features_->restore(s.slot, at, &trace.tap_values[row * width],
                       &trace.tap_scales[row * kHeadTaps]);
  }
}

// Before the sequence moves on: s.computed() is the position of the entry's first row. What is
// logged is rounded by the pool's idle workers; the rest, which the head's ring alone wants, here.
void EngineCore::capture(const RoundEntry& e) {
  Sequence& s = *e.sequence;
  if (!wants_features(s)) return;
  // Rows of rejected drafts are no history.
  const int committed = e.decode ? int(e.emitted.size()) : e.n_rows;
  features_pending_ = true;
  // What the head's ring wants: of a logged request all that is logged, so that a replay sees what
  // the live head saw, whichever weights come to draft; else as far back as these look.
  const bool keeps = portfolio_->keeps_features();
  const std::int64_t wanted_from =
      s.trace ? s.trace->tap_first : s.computed() + committed - portfolio_->head_window(s.learned);
  for (int i = 0; i < committed; ++i) {
    const std::int64_t position = s.computed() + i;
    const int row = e.first_row + (e.decode ? e.path[std::size_t(i)] : i);
    // After preemption positions come again, with the same values: logged once.
    if (s.trace && position == s.trace->tap_first + s.trace->tap_positions())
      features_->log(row, *s.trace, position);
    if (keeps && position >= wanted_from) features_->to_ring(row, s.slot, position);
  }
}

// Before the next round, and before a trace goes anywhere: what is logged is there, and the head's
// ring has the very same.
void EngineCore::settle_features() {
  if (!features_pending_) return;
  features_pending_ = false;
  pool_->complete();
  features_->settle();
}

}  // namespace foretoken
