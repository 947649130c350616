#include "runtime/speculate/traffic_store.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>
#include <map>
#include <random>

namespace foretoken {
namespace {

std::vector<TokenId> random_tokens(std::mt19937& random, int n, unsigned vocabulary) {
  std::vector<TokenId> tokens(static_cast<std::size_t>(n));
  for (auto& t : tokens) t = static_cast<TokenId>(random() % vocabulary);
  return tokens;
}

TEST(TrafficStore, CountsContinuationsOfEachOrder) {
  // Few continuations a context, so that the store keeps exact counts of all of them.
  std::mt19937 random(3);
  TrafficStore store(std::size_t{8} << 20);
  std::map<std::pair<int, std::vector<TokenId>>, std::map<TokenId, std::uint32_t>> truth;
  for (int request = 0; request < 20; ++request) {
    const auto tokens = random_tokens(random, 200, 3);
    store.add(tokens);
    for (std::size_t i = 2; i < tokens.size(); ++i) {
      for (int order = 2; order <= 4 && static_cast<std::size_t>(order) <= i; ++order) {
        const auto at = tokens.begin() + static_cast<std::ptrdiff_t>(i);
        ++truth[{order, {at - order, at}}][tokens[i]];
      }
    }
  }
  for (const auto& [key, counts] : truth) {
    std::vector<std::uint32_t> wanted;
    std::uint32_t total = 0;
    for (const auto& [token, count] : counts) {
      wanted.push_back(count);
      total += count;
    }
    std::sort(wanted.rbegin(), wanted.rend());
    const auto found = store.find(key.second, key.first);
    ASSERT_EQ(found.size(), std::min<std::size_t>(2, wanted.size()));
    for (int i = 0; i < int(found.size()); ++i) {
      const auto& item = found[static_cast<std::size_t>(i)];
      EXPECT_EQ(item.count, wanted[static_cast<std::size_t>(i)]);
      EXPECT_EQ(item.count, counts.at(item.token));
      EXPECT_EQ(item.total, total);
    }
  }
  EXPECT_EQ(store.entries(), static_cast<std::int64_t>(truth.size()));
  EXPECT_EQ(store.requests(), 20);
}

TEST(TrafficStore, UnknownAndShortContextsAreEmpty) {
  TrafficStore store(1 << 16);
  store.add(std::vector<TokenId>{1, 2, 3, 4, 5, 6});
  const std::vector<TokenId> unknown = {9, 9, 9, 9}, one = {2};
  EXPECT_EQ(store.find(unknown, 4).size(), 0u);
  EXPECT_EQ(store.find(one, 2).size(), 0u);
  const std::vector<TokenId> known = {1, 2, 3, 4};
  ASSERT_EQ(store.find(known, 4).size(), 1u);
  EXPECT_EQ(store.find(known, 4)[0].token, 5);
}

TEST(TrafficStore, TheMoreRecentWinsTies) {
  TrafficStore store(1 << 16);
  store.add(std::vector<TokenId>{1, 2, 7});
  store.add(std::vector<TokenId>{1, 2, 8});
  const std::vector<TokenId> context = {1, 2};
  EXPECT_EQ(store.find(context, 2)[0].token, 8);
  store.add(std::vector<TokenId>{1, 2, 7});
  EXPECT_EQ(store.find(context, 2)[0].token, 7);
}

TEST(TrafficStore, MemoryIsBoundedAndWhatRepeatsSurvivesAFlood) {
  constexpr std::size_t kBytes = 1 << 18;  // 8192 entries
  TrafficStore store(kBytes);
  EXPECT_LE(store.bytes(), kBytes);
  std::mt19937 random(5);
  // 200 contexts of traffic's own phrases, seen often; then ten times the capacity of singletons.
  std::vector<std::vector<TokenId>> phrases;
  for (int i = 0; i < 60; ++i) phrases.push_back(random_tokens(random, 5, 30000));
  const auto say_phrases = [&] {
    for (const auto& phrase : phrases) store.add(phrase);
  };
  for (int i = 0; i < 16; ++i) say_phrases();
  for (int i = 0; i < 270; ++i) {
    store.add(random_tokens(random, 100, 30000));
    if (i % 20 == 0) say_phrases();
  }
  EXPECT_LE(store.bytes(), kBytes);
  EXPECT_LE(store.entries(), static_cast<std::int64_t>(kBytes / 32));
  EXPECT_GT(store.entries(), static_cast<std::int64_t>(kBytes / 32 * 9 / 10));
  int kept = 0;
  for (const auto& phrase : phrases) {
    const auto found = store.find(std::span(phrase).first(4), 4);
    kept += !found.empty() && found[0].token == phrase[4] ? 1 : 0;
  }
  EXPECT_GE(kept, 54) << "of 60";
}

TEST(TrafficStore, TheNewestSingletonsStayOverOlderOnes) {
  TrafficStore store(1 << 14);
  std::mt19937 random(6);
  for (int i = 0; i < 50; ++i) store.add(random_tokens(random, 100, 30000));
  const auto last = random_tokens(random, 40, 30000);
  store.add(last);
  int kept = 0;
  for (std::size_t i = 4; i < last.size(); ++i)
    kept += store.find(std::span(last).first(i), 4).empty() ? 0 : 1;
  EXPECT_GE(kept, 25) << "of 36";
}

TEST(TrafficStore, ACountThatOverflowsKeepsItsProportions) {
  TrafficStore store(1 << 14);
  for (int i = 0; i < 100000; ++i) {
    store.add(std::vector<TokenId>{1, 2, i % 4 == 0 ? 5 : 6});
  }
  const std::vector<TokenId> context = {1, 2};
  const auto found = store.find(context, 2);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].token, 6);
  EXPECT_NEAR(static_cast<double>(found[0].count) / found[0].total, 0.75, 0.01);
  EXPECT_NEAR(static_cast<double>(found[1].count) / found[1].total, 0.25, 0.01);
}

class SavedStore : public ::testing::Test {
 protected:
  SavedStore() {
    std::mt19937 random(8);
    for (int i = 0; i < 30; ++i) store.add(random_tokens(random, 60, 50));
    saved = store.save();
  }
  static void sign(std::vector<std::byte>& bytes) {
    const std::uint64_t sum = XXH64(bytes.data(), bytes.size() - 8, 0);
    std::memcpy(bytes.data() + bytes.size() - 8, &sum, 8);
  }
  TrafficStore store{1 << 17};
  std::vector<std::byte> saved;
};

TEST_F(SavedStore, RestoresEqual) {
  TrafficStore copy(1 << 17);
  ASSERT_TRUE(copy.restore(saved, 50).ok());
  EXPECT_EQ(copy.save(), saved);
  EXPECT_EQ(copy.entries(), store.entries());
  EXPECT_EQ(copy.requests(), 30);
  // And goes on as the original would.
  const std::vector<TokenId> more = {1, 2, 3, 4, 5, 6, 7};
  copy.add(more);
  store.add(more);
  EXPECT_EQ(copy.save(), store.save());
}

TEST_F(SavedStore, EveryFlippedByteAndEveryTruncationIsRefusedAndNothingChanges) {
  TrafficStore other(1 << 17);
  other.add(std::vector<TokenId>{1, 2, 3});
  const auto before = other.save();
  for (std::size_t at = 0; at < saved.size(); at += 7) {
    auto bad = saved;
    bad[at] ^= std::byte{0x10};
    EXPECT_FALSE(other.restore(bad, 50).ok()) << at;
  }
  for (std::size_t n :
       {std::size_t{0}, std::size_t{7}, std::size_t{40}, saved.size() - 1, saved.size() / 2}) {
    EXPECT_FALSE(other.restore(std::span(saved).first(n), 50).ok()) << n;
  }
  EXPECT_EQ(other.save(), before);
}

TEST_F(SavedStore, ContentsAreCheckedEvenUnderAValidChecksum) {
  TrafficStore other(1 << 17);
  // Tokens outside the vocabulary would index past the embedding.
  EXPECT_FALSE(other.restore(saved, 40).ok());
  constexpr std::size_t kHeader = 40, kItem = 40;
  auto far = saved;  // a place past the end
  const std::uint64_t place = ~std::uint64_t{0};
  std::memcpy(far.data() + kHeader, &place, 8);
  sign(far);
  EXPECT_FALSE(other.restore(far, 50).ok());
  auto twice = saved;  // two entries in one place
  std::memcpy(twice.data() + kHeader + kItem, twice.data() + kHeader, 8);
  sign(twice);
  EXPECT_FALSE(other.restore(twice, 50).ok());
  auto absurd = saved;  // more entries than the bytes hold
  const std::uint64_t many = std::uint64_t{1} << 60;
  std::memcpy(absurd.data() + 16, &many, 8);
  sign(absurd);
  EXPECT_FALSE(other.restore(absurd, 50).ok());
  auto counts = saved;  // counts that exceed their total
  const std::uint32_t total = 1;
  std::memcpy(counts.data() + kHeader + 8 + 4, &total, 4);
  const std::uint16_t count = 9;
  std::memcpy(counts.data() + kHeader + 8 + 24, &count, 2);
  sign(counts);
  EXPECT_FALSE(other.restore(counts, 50).ok());
}

TEST_F(SavedStore, AnotherSizeIsRefusedByName) {
  TrafficStore other(1 << 16);
  const auto status = other.restore(saved, 50);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kUnsupported);
}

TEST(TrafficStores, OneStoreAKeyAndTheLeastRecentlyUsedMakesRoom) {
  TrafficStores stores(1 << 14, 3);
  const int shared = stores.acquire("");
  const int a = stores.acquire("a");
  EXPECT_NE(shared, a);
  stores.at(a).add(std::vector<TokenId>{1, 2, 3});
  const std::vector<TokenId> context = {1, 2};
  EXPECT_EQ(stores.at(shared).find(context, 2).size(), 0u)
      << "keys do not see each other's traffic";
  stores.release(a);
  EXPECT_EQ(stores.acquire("a"), a);
  EXPECT_EQ(stores.at(a).find(context, 2).size(), 1u);
  stores.release(a);
  const int b = stores.acquire("b");
  stores.release(b);
  const int c = stores.acquire("c");  // full: "a" was used before "b"; "" is pinned
  EXPECT_EQ(c, a);
  EXPECT_EQ(stores.at(c).find(context, 2).size(), 0u) << "nothing of a is left";
  EXPECT_TRUE(stores.forget("b"));
  EXPECT_FALSE(stores.forget("a"));
}

}  // namespace
}  // namespace foretoken
