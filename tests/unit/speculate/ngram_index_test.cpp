#include "runtime/speculate/ngram_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace foretoken {
namespace {

// The definition, word for word: the longest ending of tokens + drafted that occurs in tokens
// followed by something, its last occurrence.
std::optional<NgramIndex::Match> brute_force(const std::vector<TokenId>& tokens,
                                             std::span<const TokenId> drafted) {
  std::vector<TokenId> all = tokens;
  all.insert(all.end(), drafted.begin(), drafted.end());
  for (int length = std::min<int>(NgramIndex::kMaxMatch, static_cast<int>(all.size())); length >= 1;
       --length) {
    for (auto p = static_cast<std::int64_t>(tokens.size()) - 1; p >= length; --p) {
      if (std::equal(all.end() - length, all.end(), tokens.begin() + (p - length))) {
        return NgramIndex::Match{tokens[static_cast<std::size_t>(p)], length, p};
      }
    }
  }
  return std::nullopt;
}

TEST(NgramIndex, FindsWhatBruteForceFinds) {
  std::mt19937 random(7);
  for (int vocabulary : {2, 5, 40, 1000}) {
    NgramIndex index;
    std::vector<TokenId> tokens;
    for (int step = 0; step < 400; ++step) {
      const auto token = static_cast<TokenId>(random() % static_cast<unsigned>(vocabulary));
      tokens.push_back(token);
      index.append(token);
      std::vector<TokenId> drafted(random() % 4);
      for (auto& t : drafted)
        t = static_cast<TokenId>(random() % static_cast<unsigned>(vocabulary));
      const auto found = index.find(drafted);
      const auto wanted = brute_force(tokens, drafted);
      ASSERT_EQ(found.has_value(), wanted.has_value())
          << "vocabulary " << vocabulary << " step " << step;
      if (!wanted) continue;
      EXPECT_EQ(found->next, wanted->next);
      EXPECT_EQ(found->length, wanted->length);
      EXPECT_EQ(found->position, wanted->position);
    }
  }
}

TEST(NgramIndex, ContinuesACopiedPassageThroughHypotheticalTokens) {
  NgramIndex index;
  const std::vector<TokenId> passage = {10, 11, 12, 13, 14, 15, 16, 17};
  index.append(passage);
  index.append(99);
  index.append(std::vector<TokenId>{10, 11});
  std::vector<TokenId> drafted;
  while (drafted.size() < 6) {
    const auto match = index.find(drafted);
    ASSERT_TRUE(match);
    drafted.push_back(match->next);
  }
  EXPECT_EQ(drafted, (std::vector<TokenId>{12, 13, 14, 15, 16, 17}));
}

TEST(NgramIndex, ClearForgets) {
  NgramIndex index;
  index.append(std::vector<TokenId>{1, 2, 1});
  ASSERT_TRUE(index.find({}));
  index.clear();
  EXPECT_EQ(index.size(), 0);
  EXPECT_FALSE(index.find({}));
  index.append(std::vector<TokenId>{3, 1});
  EXPECT_FALSE(index.find({}));
}

TEST(NgramIndex, TailSpansTokensAndDraft) {
  NgramIndex index;
  index.append(std::vector<TokenId>{1, 2, 3});
  TokenId out[4] = {};
  const TokenId drafted[] = {7, 8};
  EXPECT_EQ(index.tail(drafted, 4, out), 4);
  EXPECT_EQ(std::vector<TokenId>(out, out + 4), (std::vector<TokenId>{2, 3, 7, 8}));
  NgramIndex empty;
  EXPECT_EQ(empty.tail(drafted, 4, out), 2);
  EXPECT_EQ(out[2], 7);
  EXPECT_EQ(out[3], 8);
}

}  // namespace
}  // namespace foretoken
