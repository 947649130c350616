#include "runtime/speculate/candidates.h"

#include <gtest/gtest.h>

#include <set>

namespace foretoken {
namespace {

TEST(Candidates, ClassLayoutIsTheTraceFormats) {
  EXPECT_EQ(own_class(1), 0);
  EXPECT_EQ(own_class(5), 4);
  EXPECT_EQ(own_class(6), 4);
  EXPECT_EQ(traffic_class(2, 1, 100), 5 + 0 * 4 + 3);  // p < .2, total >= 16
  EXPECT_EQ(traffic_class(2, 1, 1), 5 + 4 * 4 + 0);    // p = 1, one sighting
  EXPECT_EQ(traffic_class(4, 16, 16), kFusionClasses - 1);
  std::set<int> classes;
  for (int order = 2; order <= 4; ++order) {
    for (std::uint32_t total : {1u, 2u, 3u, 5u, 10u, 20u, 1000u}) {
      for (std::uint32_t count = 1; count <= total; ++count) {
        const int fusion_class = traffic_class(order, count, total);
        ASSERT_GE(fusion_class, kOwnClasses + (order - 2) * 20);
        ASSERT_LT(fusion_class, kOwnClasses + (order - 1) * 20);
        classes.insert(fusion_class);
      }
    }
  }
  // One sighting has p = 1, two or three no p below a third: 15 of an order's 20 classes can occur.
  EXPECT_EQ(classes.size(), 45u);
}

TEST(Candidates, BucketsRiseWithProbabilityAndCount) {
  int last = 0;
  for (std::uint32_t count = 0; count <= 100; ++count) {
    const int bucket = probability_bucket(count, 100);
    EXPECT_GE(bucket, last);
    last = bucket;
  }
  EXPECT_EQ(last, kProbabilityBuckets - 1);
  EXPECT_EQ(probability_bucket(19, 100), 0);
  EXPECT_EQ(probability_bucket(20, 100), 1);
  EXPECT_EQ(probability_bucket(95, 100), 4);
  EXPECT_EQ(count_bucket(1), 0);
  EXPECT_EQ(count_bucket(3), 1);
  EXPECT_EQ(count_bucket(15), 2);
  EXPECT_EQ(count_bucket(16), 3);
}

TEST(Candidates, OwnContextFirstThenTrafficFromTheLongestOrder) {
  NgramIndex own;
  own.append(std::vector<TokenId>{1, 2, 3, 4, 50, 1, 2, 3, 4});
  TrafficStore traffic(1 << 16);
  for (int i = 0; i < 3; ++i) traffic.add(std::vector<TokenId>{1, 2, 3, 4, 60});
  traffic.add(std::vector<TokenId>{1, 2, 3, 4, 61});
  for (int i = 0; i < 5; ++i) traffic.add(std::vector<TokenId>{9, 3, 4, 62});

  const CandidateList list = find_candidates(own, traffic, {});
  ASSERT_EQ(list.size(), 7u);
  EXPECT_EQ(list[0].token, 50);
  EXPECT_EQ(list[0].fusion_class, own_class(4));
  EXPECT_EQ(list[1].token, 60);
  EXPECT_EQ(list[1].fusion_class, traffic_class(4, 3, 4));
  EXPECT_EQ(list[2].token, 61);
  EXPECT_EQ(list[3].fusion_class, traffic_class(3, 3, 4));
  EXPECT_EQ(list[5].token, 62) << "most frequent after (3, 4)";
  EXPECT_EQ(list[5].fusion_class, traffic_class(2, 5, 9));

  // One token further along a hypothetical draft.
  const TokenId drafted[] = {50};
  const CandidateList next = find_candidates(own, traffic, drafted);
  ASSERT_GE(next.size(), 1u);
  EXPECT_EQ(next[0].token, 1);
  EXPECT_EQ(next[0].fusion_class, own_class(5));
}

TEST(Candidates, NothingKnownIsAnEmptyList) {
  NgramIndex own;
  own.append(std::vector<TokenId>{1, 2, 3});
  TrafficStore traffic(1 << 14);
  EXPECT_EQ(find_candidates(own, traffic, {}).size(), 0u);
}

}  // namespace
}  // namespace foretoken
