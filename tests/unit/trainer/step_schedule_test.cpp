#include "trainer/examples/step_schedule.h"

#include <gtest/gtest.h>

#include <map>

namespace foretoken::trainer {
namespace {

class NoTraces final : public TraceSource {
 public:
  std::optional<RequestTrace> trace(std::uint64_t) const override { return std::nullopt; }
  std::uint64_t oldest_sequence() const override { return 0; }
};

constexpr int kRequests = 40, kChains = 100;

StepOptions options_of() {
  StepOptions options;
  options.learning_rate = 1e-3;
  options.tokens_per_step = 270;
  options.passes = 3;
  options.drift_passes = 5;
  return options;
}
// Every third request offers nothing.
std::optional<Piece> starts_of(std::uint64_t sequence) {
  if (sequence % 3 == 2) return std::nullopt;
  return Piece{sequence, 5, kChains};
}
// All that is due: how often each request was learned from, fresh and again. What the head said was
// half right, as it thought.
std::map<std::uint64_t, std::pair<int, int>> run(StepSchedule& schedule, std::uint64_t domain = 0) {
  std::map<std::uint64_t, std::pair<int, int>> chains;
  while (schedule.under_way() || schedule.begin(0, starts_of)) {
    while (const auto piece = schedule.take(64)) {
      EXPECT_GE(piece->start, 5);
      EXPECT_LE(piece->start + piece->count, 5 + kChains);
      EXPECT_LE(piece->count, 64);
      auto& [fresh, again] = chains[piece->sequence];
      (schedule.fresh() ? fresh : again) += int(piece->count);
      for (int i = 0; i < piece->count; ++i) schedule.watch(domain, 0.5, i % 2 == 0);
    }
    schedule.end();
  }
  return chains;
}

TEST(StepSchedule, LearnsFromEachRequestOnceAndThenAsOftenAsIsOwed) {
  const NoTraces source;
  for (const int passes : {4, 2}) {
    StepOptions options = options_of();
    options.passes = passes;
    StepSchedule schedule(options, source);
    for (std::uint64_t i = 0; i < kRequests; ++i) schedule.observe(i, starts_of(i), kChains + 1);
    int fresh = 0, again = 0;
    for (const auto& [sequence, counts] : run(schedule)) {
      EXPECT_NE(sequence % 3, 2u);
      EXPECT_TRUE(counts.first == 0 || counts.first == kChains) << sequence;
      fresh += counts.first;
      again += counts.second;
    }
    const int offered = 27 * kChains;  // 0, 1, 3, 4, ... 39
    EXPECT_EQ(schedule.tokens(), 27 * (kChains + 1));
    EXPECT_GT(fresh, offered - 270);  // what does not fill a step waits
    EXPECT_NEAR(again, (passes - 1) * fresh, 300);
  }
}

TEST(StepSchedule, GivesUpReplayWhileManyRequestsWait) {
  const NoTraces source;
  StepSchedule schedule(options_of(), source);
  for (std::uint64_t i = 0; i < 6; ++i) schedule.observe(i, starts_of(i), kChains);
  ASSERT_TRUE(schedule.begin(0, starts_of));
  EXPECT_TRUE(schedule.fresh());
  while (schedule.take(1000)) {
  }
  EXPECT_FALSE(schedule.begin(17, starts_of));
  EXPECT_FALSE(schedule.begin(0, starts_of)) << "what was owed is given up, not put off";
}

// How often what is fresh is gone over again, of `requests` more.
double replays(StepSchedule& schedule, std::uint64_t& next, int requests,
               std::uint64_t domain = 0) {
  int fresh = 0, again = 0;
  for (int i = 0; i < requests; ++i, ++next) {
    schedule.observe(next, starts_of(next), kChains);
    for (const auto& [sequence, counts] : run(schedule, domain)) {
      fresh += counts.first;
      again += counts.second;
    }
  }
  return double(again) / double(fresh);
}

TEST(StepSchedule, GoesOverLessOnceNothingIsGainedUntilTrafficChanges) {
  const NoTraces source;
  StepOptions options = options_of();
  options.early_tokens = 1000;
  options.converged_growth = 4;
  options.drift_tokens = 3900;
  StepSchedule schedule(options, source);
  std::uint64_t next = 0;
  replays(schedule, next, 6, 2);  // in the early days all is new
  EXPECT_FALSE(schedule.hurried());
  EXPECT_NEAR(replays(schedule, next, 60), 2, .2);
  schedule.judged(3999, false);  // of the early days: no verdict on what is learned now
  EXPECT_NEAR(replays(schedule, next, 60), 2, .2);
  schedule.judged(4000, false);
  EXPECT_TRUE(schedule.converged());
  EXPECT_NEAR(replays(schedule, next, 60), 0, .1);
  schedule.judged(3000, true);
  EXPECT_NEAR(replays(schedule, next, 60), 2, .2);
  EXPECT_FALSE(schedule.hurried());
  EXPECT_EQ(schedule.learning_rate(), options.learning_rate);
  schedule.judged(11999, false);  // it has seen hardly more than what serves
  EXPECT_FALSE(schedule.converged());
  schedule.judged(12000, false);
  StateMap map;
  schedule.save(map, "x");
  StepSchedule resumed(options, source);
  ASSERT_TRUE(resumed.restore(map, "x"));
  EXPECT_TRUE(resumed.converged());
  replays(resumed, next, 3, 1);  // another domain: traffic has changed
  EXPECT_TRUE(resumed.hurried());
  EXPECT_EQ(resumed.learning_rate(), options.drift_learning_rate * options.learning_rate);
  EXPECT_NEAR(replays(resumed, next, 54, 1), 4, .4);
  replays(resumed, next, 6, 1);
  EXPECT_FALSE(resumed.hurried());
  resumed.judged(12000, false);  // learned before that
  EXPECT_NEAR(replays(resumed, next, 60, 1), 2, .2);
}

// Share of the replays that went to the domain of a sixth of the requests.
double share_of_the_small(double power, bool restarted) {
  const NoTraces source;
  StepOptions options = options_of();
  options.passes = 20;
  options.domain_power = power;
  const auto domain_of = [](std::uint64_t sequence) { return sequence % 12 == 0 ? 7u : 8u; };
  StepSchedule begun(options, source), resumed(options, source);
  for (std::uint64_t i = 0; i < 60; ++i) begun.observe(i, starts_of(i), kChains, domain_of(i));
  StateMap map;
  begun.save(map, "x");
  EXPECT_TRUE(resumed.restore(map, "x"));
  double small = 0, all = 0;
  for (const auto& [sequence, counts] : run(restarted ? resumed : begun)) {
    all += counts.second;
    if (domain_of(sequence) == 7) small += counts.second;
  }
  return small / all;
}

TEST(StepSchedule, DealsReplaysOutByRequestsOrByDomains) {
  for (const bool restarted : {false, true}) {
    EXPECT_NEAR(share_of_the_small(1, restarted), 5.0 / 40, 0.05);
    EXPECT_NEAR(share_of_the_small(0, restarted), 0.5, 0.08);
  }
}

TEST(StepSchedule, GoesOnAfterARestartAsIfThereWereNone) {
  const NoTraces source;
  StepSchedule whole(options_of(), source);
  for (std::uint64_t i = 0; i < kRequests; ++i) whole.observe(i, starts_of(i), kChains);
  ASSERT_TRUE(whole.begin(0, starts_of));
  StateMap map;
  whole.save(map, "x");  // a step under way is begun again
  StepSchedule resumed(options_of(), source);
  ASSERT_TRUE(resumed.restore(map, "x"));
  EXPECT_EQ(resumed.tokens(), whole.tokens());
  EXPECT_EQ(run(resumed), run(whole));
}

}  // namespace
}  // namespace foretoken::trainer
