// Hidden states of what was committed: rounded once, to the trace and to the head alike.
#include "runtime/engine/core.h"
#include "runtime/speculate/head/features.h"

namespace foretoken {

bool EngineCore::wants_features(const Sequence& s) const {
  return s.trace || (!round_.plain && s.request.speculation && portfolio_->uses_head(s.learned));
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
  for (int i = 0; i < committed; ++i) {
    const std::int64_t position = s.computed + i;
    const float* taps = &tap_values_[std::size_t(e.first_row + i) * width];
    const bool last = i + 1 == committed;
    // After preemption positions come again, with the same values: logged once.
    const bool logged = s.trace && position == s.trace->tap_first + s.trace->tap_positions();
    if (!logged && !last) continue;
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
    if (last && portfolio_->uses_head(s.learned))
      portfolio_->set_features(s.slot, position, values, to);
  }
}

}  // namespace foretoken
