// Hidden states on the host: what a trace logs and what a ring holds are the same numbers.
#include "runtime/model/feature_rows.h"

#include <gtest/gtest.h>

namespace foretoken {
namespace {

constexpr std::int64_t kHidden = 32;
constexpr HeadTaps kTaps = {0, 1, 2, 3};

void fill(HostFeatureRows& rows, int n, int salt) {
  for (int row = 0; row < n; ++row) {
    for (std::size_t tap = 0; tap < kTaps.size(); ++tap) {
      for (int i = 0; i < kHidden; ++i)
        rows.values(row, tap)[i] = float((row * 7 + int(tap) * 31 + i * 3 + salt) % 53 - 26) / 7;
    }
  }
}

std::vector<float> decoded(const FeatureView& view, std::int64_t position) {
  std::vector<float> out(kHeadTaps * kHidden);
  view.decode(position, kHeadTaps, out.data());
  return out;
}

void settle(HostFeatureRows& rows) {
  for (int i = rows.tasks() - 1; i >= 0; --i) rows.run_task(i);
  rows.settle();
  EXPECT_EQ(rows.tasks(), 0);
}

TEST(FeatureRows, ARingHoldsWhatTheTraceLogs) {
  HostFeatureRows rows(kTaps, kHidden, 4, 2);
  RequestTrace trace;
  trace.n_taps = kHeadTaps;
  trace.tap_width = kHidden;
  trace.tap_first = 10;
  fill(rows, 4, 0);
  for (int row = 0; row < 3; ++row) {
    rows.log(row, trace, 10 + row);
    rows.to_ring(row, 1, 10 + row);
  }
  rows.to_ring(3, 0, 40);  // of a request that is not logged
  EXPECT_EQ(rows.tasks(), 3);
  settle(rows);
  EXPECT_EQ(trace.tap_positions(), 3);
  const FeatureView logged{
      trace.tap_values.data(), trace.tap_scales.data(), kHidden, 10, 13, 10, 3};
  const FeatureView ring = rows.ring(1);
  EXPECT_EQ(ring.first, 10);
  EXPECT_EQ(ring.end, 13);
  std::vector<float> taps(kHeadTaps * kHidden);
  for (int row = 0; row < 3; ++row) {
    EXPECT_EQ(decoded(ring, 10 + row), decoded(logged, 10 + row));
    rows.read_back(row, taps.data());
    const std::vector<float> rounded = decoded(ring, 10 + row);
    for (std::size_t i = 0; i < taps.size(); ++i) EXPECT_NEAR(rounded[i], taps[i], 4e-3);
  }
  rows.read_back(3, taps.data());
  EXPECT_NEAR(decoded(rows.ring(0), 40)[5], taps[5], 4e-3);
}

TEST(FeatureRows, ARingIsOfOneHistoryAndOfItsLastPositions) {
  HostFeatureRows rows(kTaps, kHidden, 1, 1);
  EXPECT_EQ(rows.ring(0).first, rows.ring(0).end);
  rows.to_ring(0, 0, 0);
  const std::uint64_t history = rows.history(0);
  for (int position = 1; position < 300; ++position) {
    fill(rows, 1, position);
    rows.to_ring(0, 0, position);
  }
  EXPECT_EQ(rows.history(0), history);
  EXPECT_EQ(rows.ring(0).first, 300 - kHeadWindow);
  EXPECT_EQ(rows.ring(0).end, 300);
  EXPECT_NE(decoded(rows.ring(0), 299), decoded(rows.ring(0), 298));
  std::vector<std::uint16_t> values(kHeadTaps * kHidden, 0x3c00);
  const std::vector<float> scales(kHeadTaps, 2.0f);
  rows.restore(0, 310, values.data(), scales.data());  // does not follow
  EXPECT_NE(rows.history(0), history);
  EXPECT_EQ(rows.ring(0).first, 310);
  EXPECT_EQ(decoded(rows.ring(0), 310)[0], 2.0f);
  rows.forget(0);
  EXPECT_EQ(rows.ring(0).first, rows.ring(0).end);
}

}  // namespace
}  // namespace foretoken
