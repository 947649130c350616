// The draft vocabulary: counted from traffic, and what of it is served.
#include "trainer/examples/draft_vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace foretoken::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::IsSupersetOf;

// Token t is generated times[t] times, each time with certainty: mass 2 an occurrence.
VocabularyCounts counted(const std::vector<int>& times) {
  VocabularyCounts counts(std::int64_t(times.size()));
  RequestTrace trace;
  for (std::size_t t = 0; t < times.size(); ++t) {
    for (int i = 0; i < times[t]; ++i) {
      trace.tokens.push_back(TokenId(t));
      GeneratedTokenTrace& generated = trace.generated.emplace_back();
      generated.top_ids = {TokenId(t)};
      generated.top_logits = {0};
    }
  }
  counts.observe(trace);
  return counts;
}

TEST(DraftVocabulary, TakesTheMostFrequentAndTiesByLowerId) {
  const auto counts = counted({0, 5, 2, 2, 9, 0});
  EXPECT_THAT(counts.most_frequent(3), ElementsAre(1, 2, 4));
  EXPECT_NEAR(counts.coverage({1, 4}), 14.0 / 18, 1e-6);
}

TEST(DraftVocabulary, ServesWhatHasItsShareInWholeGroups) {
  std::vector<int> times(64, 0);
  for (int t = 0; t < 20; ++t) times[std::size_t(3 * t)] = t < 10 ? 50 : 3;  // 530 in all
  const auto counts = counted(times);
  std::vector<TokenId> vocab(64), frequent, common;
  std::iota(vocab.begin(), vocab.end(), 0);
  for (int t = 0; t < 20; ++t) (t < 10 ? common : frequent).push_back(TokenId(3 * t));
  // Ten have it: a group is 16, filled up with the next in mass.
  const auto few = counts.frequent(vocab, 0.02);
  EXPECT_EQ(few.size(), 16u);
  EXPECT_THAT(few, IsSupersetOf(common));
  EXPECT_TRUE(std::ranges::is_sorted(few));
  // All twenty: two groups.
  const auto all = counts.frequent(vocab, 0.005);
  EXPECT_EQ(all.size(), 32u);
  EXPECT_THAT(all, IsSupersetOf(common));
  EXPECT_THAT(all, IsSupersetOf(frequent));
  EXPECT_EQ(counts.frequent(vocab, 0), vocab);
  EXPECT_EQ(counts.frequent(vocab, 2).size(), 16u);
  EXPECT_EQ(VocabularyCounts(64).frequent(vocab, 0.5), vocab) << "nothing was counted";
}

}  // namespace
}  // namespace foretoken::trainer
