// The tree of a draft: paths, children, cuts.
#include "runtime/speculate/draft_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace foretoken {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

DraftTree chain_of(int n) {
  DraftTree draft;
  for (int i = 0; i < n; ++i) draft.push(10 + i, 0.5f, SpeculatorKind::kNgram, 0.4f);
  return draft;
}

TEST(DraftTree, PushedTokensAreAChain) {
  const DraftTree draft = chain_of(3);
  EXPECT_THAT(draft.parents, ElementsAre(-1, 0, 1));
  EXPECT_TRUE(draft.is_chain());
  EXPECT_TRUE(DraftTree().is_chain());
  EXPECT_EQ(draft.depth(2), 2);
  EXPECT_EQ(draft.child(-1, 10), 0);
  EXPECT_EQ(draft.child(0, 10), -1);
  EXPECT_EQ(draft.next_sibling(0), -1);
}

TEST(DraftTree, BranchesAreFoundByTheirParent) {
  DraftTree draft = chain_of(2);
  draft.push_after(-1, 20, 0.2f, SpeculatorKind::kModel, 0.1f);  // node 2
  draft.push_after(0, 21, 0.2f, SpeculatorKind::kModel, 0.1f);   // node 3
  draft.push(22, 0.2f, SpeculatorKind::kModel, 0.1f);            // node 4, after 3
  EXPECT_FALSE(draft.is_chain());
  EXPECT_EQ(draft.first_child(-1), 0);
  EXPECT_EQ(draft.next_sibling(0), 2);
  EXPECT_EQ(draft.next_sibling(2), -1);
  EXPECT_EQ(draft.child(0, 21), 3);
  EXPECT_EQ(draft.child(2, 21), -1);
  EXPECT_EQ(draft.depth(4), 2);
  draft.truncate(2);
  EXPECT_TRUE(draft.is_chain());
  EXPECT_THAT(draft.tokens, ElementsAre(10, 11));
}

TEST(DraftTree, SupportIsCutWithItsNodes) {
  DraftTree draft;
  for (int i = 0; i < 3; ++i) {
    for (int k = 0; k <= i; ++k) draft.support.emplace_back(100 * i + k, 0.5f);
    draft.push(i, 0.5f, SpeculatorKind::kModel, 0.5f);
    draft.end_support();
  }
  EXPECT_THAT(draft.support_of(1), ElementsAre(std::pair(100, 0.5f), std::pair(101, 0.5f)));
  draft.truncate(1);
  EXPECT_THAT(draft.support_of(0), ElementsAre(std::pair(0, 0.5f)));
  EXPECT_THAT(draft.support_of(1), IsEmpty());
  draft.support.emplace_back(7, 0.25f);
  draft.push(7, 0.25f, SpeculatorKind::kModel, 0.25f);
  draft.end_support();
  EXPECT_THAT(draft.support_of(1), ElementsAre(std::pair(7, 0.25f)));
}

}  // namespace
}  // namespace foretoken
