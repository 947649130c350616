// Hidden states of what was committed: rounded once, to the trace and to the head alike.
#include "runtime/engine/core.h"
#include "runtime/speculate/head/features.h"

namespace foretoken {

bool EngineCore::wants_features(const Sequence& s) const {
  return s.trace || (!round_.plain && s.request.speculation && portfolio_->uses_head(s.learned));
}

// A request that comes back to pages of its own, as after a preemption: the head's ring holds what
// its log does, and so what a replay will see.
void EngineCore::restore_features(const Sequence& s) {
  if (!portfolio_->keeps_features()) return;
  const RequestTrace& trace = *s.trace;
  const std::int64_t end = std::min(s.computed, trace.tap_first + trace.tap_positions());
  const auto width = kHeadTaps * model_->config().hidden;
  for (std::int64_t at = std::max<std::int64_t>(trace.tap_first, end - kHeadWindow); at < end;
       ++at) {
    const auto row = std::size_t(at - trace.tap_first);
    portfolio_->set_features(s.slot, at, trace.tap_values.data() + row * std::size_t(width),
                             trace.tap_scales.data() + row * kHeadTaps);
  }
}

// Before the sequence moves on: s.computed is the position of the entry's first row.
void EngineCore::capture(const RoundEntry& e) {
  Sequence& s = *e.sequence;
  if (!wants_features(s)) return;
  const std::int64_t hidden = model_->config().hidden;
  const auto width = std::size_t(kHeadTaps * hidden);
  // Rows of rejected drafts are no history.
  const int committed = e.decode ? int(e.emitted.size()) : e.n_rows;
  std::array<float, kHeadTaps> scales;
  // What the head's ring wants: of a logged request all that is logged, so that a replay sees what
  // the live head saw, whichever weights come to draft; else as far back as these look.
  const bool keeps = portfolio_->keeps_features();
  const std::int64_t wanted_from =
      s.trace ? s.trace->tap_first : s.computed + committed - portfolio_->head_window(s.learned);
  for (int i = 0; i < committed; ++i) {
    const std::int64_t position = s.computed + i;
    const float* taps = &tap_values_[std::size_t(e.first_row + i) * width];
    // After preemption positions come again, with the same values: logged once.
    const bool logged = s.trace && position == s.trace->tap_first + s.trace->tap_positions();
    const bool kept = keeps && position >= wanted_from;
    if (!logged && !kept) continue;
    std::uint16_t* values = feature_values_.data();
    float* to = scales.data();
    if (logged) {
      RequestTrace& trace = *s.trace;
      trace.tap_values.resize(trace.tap_values.size() + width);
      trace.tap_scales.resize(trace.tap_scales.size() + kHeadTaps);
      values = trace.tap_values.data() + (trace.tap_values.size() - width);
      to = trace.tap_scales.data() + (trace.tap_scales.size() - kHeadTaps);
    }
    encode_features(taps, hidden, values, to);
    if (kept) portfolio_->set_features(s.slot, position, values, to);
  }
}

}  // namespace foretoken
