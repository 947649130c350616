#include "runtime/replay/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>

namespace foretoken {
namespace {

TEST(Thinning, IsEvenDistinctAndInRange) {
  for (std::size_t size : {1u, 7u, 100u, 1003u}) {
    for (std::size_t n = 1; n <= size; ++n) {
      const auto chosen = thin_evenly(size, n);
      ASSERT_EQ(chosen.size(), n);
      std::size_t widest = 0, narrowest = size;
      for (std::size_t i = 1; i < n; ++i) {
        ASSERT_GT(chosen[i], chosen[i - 1]);
        widest = std::max(widest, chosen[i] - chosen[i - 1]);
        narrowest = std::min(narrowest, chosen[i] - chosen[i - 1]);
      }
      ASSERT_LT(chosen.back(), size);
      if (n > 1) {
        ASSERT_LE(widest - narrowest, 1u);
      }
    }
  }
  EXPECT_TRUE(thin_evenly(0, 5).empty());
  EXPECT_EQ(thin_evenly(4, 9).size(), 4u);
}

TEST(ClosedPlan, WithoutABudgetSendsAllInOrder) {
  ClosedPlan plan(9, 0, 2);
  for (std::size_t i = 0; i < 9; ++i) EXPECT_EQ(plan.next(0, i), i);
  EXPECT_FALSE(plan.next(0, 9).has_value());
}

// A server with `speed(i)` seconds a request and `concurrency` in flight, in simulated time.
template <class Speed>
std::vector<std::size_t> simulate(ClosedPlan& plan, int concurrency, Speed speed, double* end_s) {
  std::vector<double> free_at(static_cast<std::size_t>(concurrency), 0.0);
  std::vector<double> ends;
  std::vector<std::size_t> sent;
  while (true) {
    auto worker = std::min_element(free_at.begin(), free_at.end());
    const double now = *worker;
    const auto completed = static_cast<std::size_t>(
        std::count_if(ends.begin(), ends.end(), [&](double e) { return e <= now; }));
    const auto next = plan.next(now, completed);
    if (!next) break;
    sent.push_back(*next);
    *worker = now + speed(*next);
    ends.push_back(*worker);
  }
  *end_s = *std::max_element(ends.begin(), ends.end());
  return sent;
}

TEST(ClosedPlan, FitsTheBudgetAndKeepsTheLogsQuarters) {
  for (double faster_later : {0.0, 0.4, -0.4}) {
    constexpr std::size_t kRequests = 1200;
    ClosedPlan plan(kRequests, 720, 2);
    double end_s = 0;
    const auto sent = simulate(
        plan, 2,
        [&](std::size_t i) {
          return (2.0 + double(i * 7919 % 5)) * (1 - faster_later * double(i) / kRequests);
        },
        &end_s);
    EXPECT_GT(end_s, 720 * 0.85) << faster_later;
    EXPECT_LT(end_s, 720 * 1.15) << faster_later;
    EXPECT_EQ(std::set<std::size_t>(sent.begin(), sent.end()).size(), sent.size());
    EXPECT_EQ(plan.expected_total(), sent.size());
    std::array<int, kQuarters> per_quarter{};
    int last = 0;
    for (std::size_t i : sent) {
      const int q = quarter_of(i, kRequests);
      EXPECT_GE(q, last);
      last = q;
      ++per_quarter[static_cast<std::size_t>(q)];
    }
    for (int n : per_quarter) EXPECT_GT(n, static_cast<int>(sent.size()) / 8);
  }
}

TEST(ClosedPlan, AGenerousBudgetSendsEverything) {
  ClosedPlan plan(200, 1e6, 3);
  double end_s = 0;
  auto sent = simulate(
      plan, 3, [](std::size_t) { return 1.0; }, &end_s);
  std::sort(sent.begin(), sent.end());
  ASSERT_EQ(sent.size(), 200u);
  EXPECT_EQ(sent.back(), 199u);
}

TEST(ClosedPlan, TinyLogsAndBudgets) {
  for (std::size_t n : {1u, 2u, 3u, 5u}) {
    ClosedPlan plan(n, 0.5, 2);
    double end_s = 0;
    const auto sent = simulate(
        plan, 2, [](std::size_t) { return 3.0; }, &end_s);
    EXPECT_GE(sent.size(), 1u);
    EXPECT_LE(sent.size(), n);
  }
}

}  // namespace
}  // namespace foretoken
