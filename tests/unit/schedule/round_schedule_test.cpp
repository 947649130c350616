// Planning alone, on random states and as a simulation of whole lives: what every plan must hold,
// and that everybody gets done however few pages there are.
#include "runtime/schedule/round_schedule.h"

#include <gtest/gtest.h>

#include <deque>
#include <numeric>
#include <random>

namespace foretoken {
namespace {

constexpr std::int64_t kPage = 64;

// A pool that counts pages.
class CountedPages final : public PageBudget {
 public:
  CountedPages(std::int64_t pages, std::size_t sequences) : free_(pages), held_(sequences, 0) {}
  bool reserve(std::size_t i, std::int64_t length) override {
    const std::int64_t more = (length + kPage - 1) / kPage - held_[i];
    if (more <= 0) return true;
    if (more > free_) return false;
    free_ -= more;
    held_[i] += more;
    return true;
  }
  void preempt(std::size_t i) override {
    release(i);
    preempted.push_back(i);
  }
  void release(std::size_t i) { free_ += std::exchange(held_[i], 0); }
  std::int64_t free() const { return free_; }
  std::int64_t length(std::size_t i) const { return held_[i] * kPage; }
  std::vector<std::size_t> preempted;

 private:
  std::int64_t free_;
  std::vector<std::int64_t> held_;
};

struct Round {
  std::vector<SequenceState> running;
  RoundLimits limits;
  std::int64_t pool = 0;
};

Round random_round(std::mt19937_64& random) {
  const auto upto = [&](std::int64_t n) { return std::int64_t(random() % std::uint64_t(n + 1)); };
  Round r;
  r.limits.max_draft = int(upto(8));
  const auto n = std::size_t(upto(8));
  r.limits.max_rows = std::int64_t(n) * (1 + r.limits.max_draft) + 16 + upto(200);
  std::int64_t longest = 1;
  for (std::size_t i = 0; i < n; ++i) {
    SequenceState& s = r.running.emplace_back();
    const std::int64_t prompt = 1 + upto(600), output = upto(1) * upto(300);
    s.tokens = prompt + output;
    s.prefill_end = output > 0 ? s.tokens - 1 : prompt;
    s.decodes = output > 0 && upto(3) > 0;
    s.computed = s.decodes ? s.tokens - 1 : upto(s.prefill_end - 1);
    s.may_come = 1 + upto(40);
    s.drafts = upto(4) > 0;
    longest = std::max(longest, s.tokens + r.limits.max_draft);
  }
  r.pool = (longest + kPage - 1) / kPage + upto(20);  // the whole pool holds any one of them
  return r;
}

TEST(RoundSchedule, HoldsItsRulesOnRandomStates) {
  std::mt19937_64 random(1);
  RoundSchedule plan;
  int preempting = 0, waiting_chunks = 0, full = 0;
  for (int trial = 0; trial < 50000 && !::testing::Test::HasFailure(); ++trial) {
    SCOPED_TRACE(trial);
    const Round r = random_round(random);
    CountedPages pages(r.pool, r.running.size());
    // What they hold already, the oldest first; who found no room holds nothing yet.
    for (std::size_t i = 0; i < r.running.size(); ++i) pages.reserve(i, r.running[i].computed);
    plan_decode(r.running, r.limits, pages, plan);
    std::int64_t rows = 0;
    for (const RoundSchedule::Decode& d : plan.decode) {
      const SequenceState& s = r.running[d.sequence];
      EXPECT_TRUE(s.decodes);
      EXPECT_GE(d.max_draft, 0);
      EXPECT_LE(d.max_draft, s.drafts ? r.limits.max_draft : 0);
      EXPECT_LT(d.max_draft, s.may_come);
      EXPECT_GE(pages.length(d.sequence), s.tokens + d.max_draft);
      rows += 1 + std::int64_t(random() % std::uint64_t(1 + d.max_draft));  // as much is drafted
    }
    EXPECT_LE(plan.prefill_rows, r.limits.max_rows - rows);
    const auto decoding = plan.decode;
    plan_prefill(r.running, r.limits, rows, pages, plan);
    EXPECT_EQ(plan.decode.size(), decoding.size());
    for (std::size_t i = 0; i < plan.prefill.size(); ++i) {
      const RoundSchedule::Chunk& c = plan.prefill[i];
      const SequenceState& s = r.running[c.sequence];
      EXPECT_FALSE(s.decodes);
      EXPECT_GT(c.rows, 0);
      EXPECT_LE(s.computed + c.rows, s.prefill_end);
      EXPECT_GE(pages.length(c.sequence), s.computed + c.rows);
      if (i > 0) {
        EXPECT_LT(plan.prefill[i - 1].sequence, c.sequence) << "first come first served";
      }
      // Only the last chunk may be cut short, by the rows that there are.
      if (s.computed + c.rows < s.prefill_end) {
        EXPECT_EQ(i + 1, plan.prefill.size());
      }
      rows += c.rows;
    }
    EXPECT_LE(rows, r.limits.max_rows);
    full += rows == r.limits.max_rows;
    // Who was preempted was youngest then, and has no rows.
    ASSERT_EQ(plan.n_running + pages.preempted.size(), r.running.size());
    for (std::size_t k = 0; k < pages.preempted.size(); ++k)
      EXPECT_EQ(pages.preempted[k], r.running.size() - 1 - k);
    for (const auto& d : plan.decode) EXPECT_LT(d.sequence, plan.n_running);
    for (const auto& c : plan.prefill) EXPECT_LT(c.sequence, plan.n_running);
    EXPECT_GE(pages.free(), 0);
    // The oldest is never the one that goes, and never waits where nobody decodes.
    if (!r.running.empty()) {
      EXPECT_GE(plan.n_running, 1u);
      EXPECT_FALSE(plan.decode.empty() && plan.prefill.empty());
    }
    preempting += !pages.preempted.empty();
    for (std::size_t i = 0; i < plan.n_running; ++i)
      waiting_chunks += !r.running[i].decodes && plan.prefill.empty();
  }
  EXPECT_GT(preempting, 1000);  // the states were hard enough
  EXPECT_GT(waiting_chunks, 100);
  EXPECT_GT(full, 1000);
}

// Requests arrive, are admitted, prefill, decode, are preempted and start over, until all are done.
int rounds_to_finish(std::uint64_t seed, std::int64_t pool_pages) {
  struct Request {
    std::int64_t prompt, output, emitted = 0;
  };
  std::mt19937_64 random(seed);
  const RoundLimits limits{80, 4};
  std::deque<Request> waiting;
  for (int i = 0; i < 12; ++i)
    waiting.push_back({1 + std::int64_t(random() % 300), 1 + std::int64_t(random() % 100)});
  std::vector<Request> running;
  std::vector<SequenceState> states;
  CountedPages pages(pool_pages, waiting.size());
  RoundSchedule plan;
  int rounds = 0;
  for (; !waiting.empty() || !running.empty(); ++rounds) {
    if (rounds == 20000) return -1;
    while (!waiting.empty() && running.size() < 8) {
      const Request& next = waiting.front();
      const std::int64_t tokens = next.prompt + next.emitted;
      if (!pages.reserve(running.size(), first_length(tokens, 0, limits)) && !running.empty())
        break;
      SequenceState& s = states.emplace_back();
      s.tokens = tokens;
      s.prefill_end = next.emitted > 0 ? tokens - 1 : next.prompt;
      s.drafts = true;
      running.push_back(next);
      waiting.pop_front();
    }
    for (std::size_t i = 0; i < running.size(); ++i) {
      states[i].decodes = running[i].emitted > 0 && states[i].computed + 1 == states[i].tokens;
      states[i].may_come = running[i].output - running[i].emitted;
    }
    pages.preempted.clear();
    plan_decode(states, limits, pages, plan);
    std::int64_t rows = 0;
    for (const auto& d : plan.decode) rows += 1 + d.max_draft;
    plan_prefill(states, limits, rows, pages, plan);
    for (const auto& d : plan.decode) {
      const auto n = 1 + std::int64_t(random() % std::uint64_t(1 + d.max_draft));
      running[d.sequence].emitted += n;
      states[d.sequence].tokens += n;
      states[d.sequence].computed += n;
    }
    for (const auto& c : plan.prefill) {
      SequenceState& s = states[c.sequence];
      s.computed += c.rows;
      if (running[c.sequence].emitted == 0 && s.computed == running[c.sequence].prompt) {
        ++running[c.sequence].emitted;
        ++s.tokens;
      }
    }
    for (std::size_t i = 0; i < pages.preempted.size(); ++i) {  // to the front of those that wait
      waiting.push_front(running.back());
      running.pop_back();
      states.pop_back();
    }
    // The finished leave; the pages of those behind them move up with them.
    for (std::size_t i = running.size(); i-- > 0;) {
      if (running[i].emitted < running[i].output) continue;
      std::vector<std::int64_t> lengths;
      for (std::size_t k = i; k < running.size(); ++k) {
        if (k > i) lengths.push_back(pages.length(k));
        pages.release(k);
      }
      running.erase(running.begin() + std::ptrdiff_t(i));
      states.erase(states.begin() + std::ptrdiff_t(i));
      for (std::size_t k = i; k < running.size(); ++k)
        EXPECT_TRUE(pages.reserve(k, lengths[k - i]));
    }
  }
  return rounds;
}

TEST(RoundSchedule, EverybodyGetsDoneHoweverFewPagesThereAre) {
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE(seed);
    const int roomy = rounds_to_finish(seed, 1000);
    const int tight = rounds_to_finish(seed, 7);  // the longest alone
    EXPECT_GT(roomy, 0);
    EXPECT_GT(tight, roomy);
  }
  // Control: a pool that does not hold the longest one never ends.
  EXPECT_EQ(rounds_to_finish(1, 2), -1);
}

// A prompt waits rather than takes pages from one that decodes; where nobody decodes, the older
// prompt takes them from the younger.
TEST(RoundSchedule, PromptsMakeRoomForThoseWhoDecode) {
  const RoundLimits limits{256, 4};
  SequenceState prompt{.tokens = 200, .computed = 64, .prefill_end = 200, .may_come = 10};
  SequenceState decoding{.tokens = 130,
                         .computed = 129,
                         .prefill_end = 129,
                         .may_come = 10,
                         .decodes = true,
                         .drafts = true};
  RoundSchedule plan;
  {
    CountedPages pages(4, 2);
    ASSERT_TRUE(pages.reserve(0, 64) && pages.reserve(1, 129));
    plan_decode(std::vector{prompt, decoding}, limits, pages, plan);
    plan_prefill(std::vector{prompt, decoding}, limits, 1, pages, plan);
    EXPECT_EQ(plan.decode.size(), 1u);
    EXPECT_TRUE(plan.prefill.empty());
    EXPECT_TRUE(pages.preempted.empty());
  }
  {
    CountedPages pages(4, 2);
    ASSERT_TRUE(pages.reserve(0, 64) && pages.reserve(1, 64));
    plan_decode(std::vector{prompt, prompt}, limits, pages, plan);
    plan_prefill(std::vector{prompt, prompt}, limits, 0, pages, plan);
    ASSERT_EQ(plan.prefill.size(), 1u);
    EXPECT_EQ(plan.prefill[0].rows, 136);
    EXPECT_EQ(pages.preempted, std::vector<std::size_t>{1});
  }
}

}  // namespace
}  // namespace foretoken
