#include "runtime/model/feature_rows.h"

#include <algorithm>
#include <cassert>

#include "foretoken/kernels/convert.h"

namespace foretoken {

void encode_features(const float* taps, std::int64_t hidden, std::uint16_t* values, float* scales) {
  for (int tap = 0; tap < kHeadTaps; ++tap)
    kernels::encode_half(taps + tap * hidden, hidden, values + tap * hidden, scales + tap);
}

void FeatureView::decode(std::int64_t position, int n_taps, float* out) const {
  assert(position >= first && position < end);
  const std::int64_t at = row(position);
  for (int tap = 0; tap < n_taps; ++tap) {
    kernels::decode_half(values + (at * kHeadTaps + tap) * hidden, scales[at * kHeadTaps + tap],
                         hidden, out + tap * hidden);
  }
}

HostFeatureRows::HostFeatureRows(std::span<const int> taps, std::int64_t hidden, int max_rows,
                                 int slots, std::pmr::memory_resource* memory)
    : FeatureRows(taps),
      hidden_(hidden),
      values_(std::size_t(max_rows) * taps.size() * std::size_t(hidden), memory),
      ring_values_(std::size_t(slots * kHeadWindow) * width(), memory),
      ring_scales_(std::size_t(slots * kHeadWindow * kHeadTaps), memory),
      rings_(std::size_t(slots)) {
  logged_.reserve(std::size_t(max_rows));
}

void HostFeatureRows::log(int row, RequestTrace& trace, std::int64_t position) {
  const auto positions = std::size_t(position - trace.tap_first + 1);
  trace.tap_values.resize(positions * width());
  trace.tap_scales.resize(positions * kHeadTaps);
  logged_.push_back({row, -1, &trace, position});
}

void HostFeatureRows::to_ring(int row, int slot, std::int64_t position) {
  if (!logged_.empty() && logged_.back().row == row) {
    logged_.back().slot = slot;  // as the trace has it, when it has
    return;
  }
  const std::size_t at = advance(slot, position);
  encode_features(values(row, 0), hidden_, &ring_values_[at * width()],
                  &ring_scales_[at * kHeadTaps]);
}

void HostFeatureRows::run_task(int i) {
  const Logged& l = logged_[std::size_t(i)];
  const auto at = std::size_t(l.position - l.trace->tap_first);
  encode_features(values(l.row, 0), hidden_, &l.trace->tap_values[at * width()],
                  &l.trace->tap_scales[at * kHeadTaps]);
}

void HostFeatureRows::settle() {
  for (const Logged& l : logged_) {
    if (l.slot < 0) continue;
    const auto at = std::size_t(l.position - l.trace->tap_first);
    restore(l.slot, l.position, &l.trace->tap_values[at * width()],
            &l.trace->tap_scales[at * kHeadTaps]);
  }
  logged_.clear();
}

std::size_t HostFeatureRows::advance(int slot, std::int64_t position) {
  Ring& ring = rings_[std::size_t(slot)];
  if (position != ring.end || ring.first == ring.end) {
    ring.first = position;
    ++ring.history;
  }
  ring.end = position + 1;
  ring.first = std::max(ring.first, ring.end - kHeadWindow);
  return std::size_t(slot * kHeadWindow + position % kHeadWindow);
}

void HostFeatureRows::restore(int slot, std::int64_t position, const std::uint16_t* values,
                              const float* scales) {
  const std::size_t at = advance(slot, position);
  std::copy_n(values, width(), &ring_values_[at * width()]);
  std::copy_n(scales, kHeadTaps, &ring_scales_[at * kHeadTaps]);
}

void HostFeatureRows::forget(int slot) {
  Ring& ring = rings_[std::size_t(slot)];
  ring.first = ring.end = 0;
  ++ring.history;
}

FeatureView HostFeatureRows::ring(int slot) const {
  const Ring& ring = rings_[std::size_t(slot)];
  const auto at = std::size_t(slot * kHeadWindow);
  return {&ring_values_[at * width()],
          &ring_scales_[at * kHeadTaps],
          hidden_,
          ring.first,
          ring.end,
          0,
          kHeadWindow};
}

void HostFeatureRows::read_back(int row, float* out) const {
  const std::size_t n = taps().size() * std::size_t(hidden_);
  std::copy_n(&values_[std::size_t(row) * n], n, out);
}

}  // namespace foretoken
