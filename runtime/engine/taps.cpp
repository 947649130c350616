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
  for (std::int64_t at = std::max<std::int64_t>(trace.tap_first, end - kHeadWindow); at < end; ++at)
    show_logged(s, at);
}

// To the head's ring: what the trace has of a position.
void EngineCore::show_logged(const Sequence& s, std::int64_t position) {
  const auto row = std::size_t(position - s.trace->tap_first);
  const auto width = std::size_t(kHeadTaps * model_->config().hidden);
  portfolio_->set_features(s.slot, position, &s.trace->tap_values[row * width],
                           &s.trace->tap_scales[row * kHeadTaps]);
}

// Before the sequence moves on: s.computed is the position of the entry's first row. What is logged
// is rounded by the pool's idle workers; the rest, which the head's ring alone wants, here.
void EngineCore::capture(const RoundEntry& e) {
  Sequence& s = *e.sequence;
  if (!wants_features(s)) return;
  const std::int64_t hidden = model_->config().hidden;
  const auto width = std::size_t(kHeadTaps * hidden);
  // Rows of rejected drafts are no history.
  const int committed = e.decode ? int(e.emitted.size()) : e.n_rows;
  // What the head's ring wants: of a logged request all that is logged, so that a replay sees what
  // the live head saw, whichever weights come to draft; else as far back as these look.
  const bool keeps = portfolio_->keeps_features();
  const std::int64_t wanted_from =
      s.trace ? s.trace->tap_first : s.computed + committed - portfolio_->head_window(s.learned);
  std::array<float, kHeadTaps> scales;
  std::int64_t logged = s.trace ? s.trace->tap_positions() : 0;
  for (int i = 0; i < committed; ++i) {
    const std::int64_t position = s.computed + i;
    const int row = e.decode ? e.path[std::size_t(i)] : i;
    const float* taps = &tap_values_[std::size_t(e.first_row + row) * width];
    // After preemption positions come again, with the same values: logged once.
    if (s.trace && position == s.trace->tap_first + logged) {
      features_.push_back({&s, position, taps});
      ++logged;
    } else if (keeps && position >= wanted_from) {
      encode_features(taps, hidden, feature_values_.data(), scales.data());
      portfolio_->set_features(s.slot, position, feature_values_.data(), scales.data());
    }
  }
  if (s.trace) {
    s.trace->tap_values.resize(std::size_t(logged) * width);
    s.trace->tap_scales.resize(std::size_t(logged) * kHeadTaps);
  }
}

void EngineCore::encode(const FeatureRow& row) const {
  RequestTrace& trace = *row.sequence->trace;
  const std::int64_t hidden = model_->config().hidden;
  const auto at = std::size_t((row.position - trace.tap_first) * kHeadTaps);
  encode_features(row.taps, hidden, &trace.tap_values[at * std::size_t(hidden)],
                  &trace.tap_scales[at]);
}

// Before the next round, and before a trace goes anywhere: what is logged is there, and the head's
// ring has the very same.
void EngineCore::settle_features() {
  if (features_.empty()) return;
  pool_->complete();
  if (portfolio_->keeps_features()) {
    for (const FeatureRow& row : features_) {
      // A request that has ended has no slot any more.
      if (row.sequence->slot >= 0) show_logged(*row.sequence, row.position);
    }
  }
  features_.clear();
}

}  // namespace foretoken
