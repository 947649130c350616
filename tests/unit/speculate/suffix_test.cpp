// The suffix automaton against a search through all that the request held.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "runtime/speculate/draft_sources.h"
#include "tests/support/count_allocations.h"

namespace foretoken {
namespace {

constexpr SpecType kSuffix = spec_type("suffix");
constexpr int kLeast = 5;

using Tokens = std::vector<TokenId>;

Tokens first(const Tokens& tokens, std::size_t n) {
  return {tokens.begin(), tokens.begin() + std::ptrdiff_t(n)};
}

// The longest suffix of `tail` that a token of `text` follows, but for the end of the text itself.
int longest(const Tokens& text, const Tokens& tail) {
  int best = 0;
  for (std::size_t end = 1; end < text.size(); ++end) {
    int n = 0;
    while (n < int(end) && n < int(tail.size()) &&
           text[end - 1 - std::size_t(n)] == tail[tail.size() - 1 - std::size_t(n)])
      ++n;
    best = std::max(best, n);
  }
  return best;
}
// Whether `token` follows a match of that length.
bool follows(const Tokens& text, const Tokens& tail, int length, TokenId token) {
  for (std::size_t end = std::size_t(length); end < text.size(); ++end) {
    if (text[end] == token &&
        std::equal(tail.end() - length, tail.end(), text.begin() + std::ptrdiff_t(end) - length))
      return true;
  }
  return false;
}

class Suffix : public ::testing::Test {
 protected:
  // Repetitive text of few tokens, with new ones now and then.
  Tokens text(int n) {
    Tokens tokens;
    while (int(tokens.size()) < n) {
      if (!tokens.empty() && random_() % 3 == 0) {
        const std::size_t at = random_() % tokens.size(), length = 1 + random_() % 30;
        for (std::size_t i = 0; i < length && at + i < tokens.size(); ++i)
          tokens.push_back(tokens[at + i]);
      }
      tokens.push_back(TokenId(random_() % 6));
    }
    tokens.resize(std::size_t(n));
    return tokens;
  }
  // What is proposed after tokens and drafted must continue the longest match there is.
  void expect_longest(const DraftContext& of, const Tokens& drafted) {
    const ProposalList said = sources_.propose(of, drafted, kSuffix);
    const Tokens own(of.tokens.begin(), of.tokens.end());
    Tokens tail = own;
    tail.insert(tail.end(), drafted.begin(), drafted.end());
    const int length = longest(own, tail);
    ++asked_;
    if (length < kLeast) {
      EXPECT_EQ(said.size(), 0u) << length;
      return;
    }
    ++proposed_;
    ASSERT_EQ(said.size(), 1u) << length;
    EXPECT_TRUE(follows(own, tail, length, said[0].token)) << "a match of " << length;
  }
  // Drafts, some of them wrong, and commits of several tokens, as rounds make them.
  void serve(int slot, const Tokens& tokens, std::size_t n_prompt) {
    DraftContext of{.slot = slot,
                    .tokens = std::span(tokens).first(n_prompt),
                    .sampling = &greedy_,
                    .store = sources_.stores().acquire("")};
    sources_.open(of);
    for (std::size_t at = n_prompt; at < tokens.size();) {
      of.tokens = std::span(tokens).first(at);
      Tokens drafted;
      for (int d = 0; d < 4; ++d) {
        expect_longest(of, drafted);
        const ProposalList said = sources_.propose(of, drafted, kSuffix);
        drafted.push_back(!said.empty() && random_() % 4 != 0 ? said[0].token
                                                              : tokens[random_() % at]);
      }
      if (random_() % 2 == 0) expect_longest(of, first(drafted, 2));  // another branch
      const std::size_t n = std::min<std::size_t>(1 + random_() % 4, tokens.size() - at);
      sources_.commit(of, std::span(tokens).subspan(at, n));
      at += n;
    }
    sources_.close(slot, true);
    sources_.stores().release(of.store);
  }

  std::mt19937_64 random_{3};
  SamplingParams greedy_{.temperature = 0};
  DraftSources sources_{{.max_sequences = 2,
                         .max_draft = 8,
                         .max_tokens = 512,
                         .store_bytes = 1 << 20,
                         .kinds = kSuffix}};
  int asked_ = 0, proposed_ = 0;
};

TEST_F(Suffix, TheLongestMatchGoesOn) {
  for (int request = 0; request < 12; ++request) serve(request % 2, text(300), 40);
  EXPECT_GT(proposed_, asked_ / 4);
  EXPECT_LT(proposed_, asked_);
}

TEST_F(Suffix, ARequestLongerThanWasReservedIsServedAlike) {
  serve(0, text(1200), 1000);
  EXPECT_GT(proposed_, asked_ / 4);
}

// The passage that goes on is the earlier of two that share six tokens and differ before.
TEST_F(Suffix, KnowsWhichOfTwoCopiesGoesOnWhereSixTokensDoNotTell) {
  Tokens tokens = {1, 2, 10, 11, 12, 13, 14, 15, 3, 4, 2, 10, 11, 12, 13, 14, 15, 5};
  const Tokens copied = first(tokens, 8);
  tokens.insert(tokens.end(), copied.begin(), copied.end());
  DraftSources both({.max_sequences = 1,
                     .max_draft = 8,
                     .max_tokens = 64,
                     .store_bytes = 1 << 20,
                     .kinds = kinds_named("suffix", "ngram")});
  const DraftContext of{.tokens = tokens, .sampling = &greedy_, .store = both.stores().acquire("")};
  both.open(of);
  const ProposalList by_suffix = both.propose(of, {}, kSuffix);
  const ProposalList by_ngram = both.propose(of, {}, spec_type("ngram"));
  ASSERT_EQ(by_suffix.size(), 1u);
  ASSERT_EQ(by_ngram.size(), 1u);
  EXPECT_EQ(by_suffix[0].token, 3);
  EXPECT_EQ(by_ngram[0].token, 5);
}

TEST_F(Suffix, NothingOfARequestOutlivesIt) {
  const Tokens whole = text(300);
  serve(0, whole, 40);
  serve(1, whole, 40);
  Tokens part(20);
  std::iota(part.begin(), part.end(), 100);  // nothing repeats
  part.insert(part.end(), whole.end() - 20, whole.end() - 10);
  ASSERT_GE(longest(whole, part), kLeast);
  ASSERT_LT(longest(part, part), kLeast);
  const DraftContext of{
      .tokens = part, .sampling = &greedy_, .store = sources_.stores().acquire("")};
  sources_.open(of);
  expect_longest(of, {});
}

TEST_F(Suffix, AllocatesNothingBelowWhatWasReserved) {
  const Tokens tokens = text(512);
  DraftContext of{.tokens = std::span(tokens).first(100),
                  .sampling = &greedy_,
                  .store = sources_.stores().acquire("")};
  std::int64_t before = 0;
  for (int request = 0; request < 2; ++request) {
    if (request == 1) before = allocations;
    of.tokens = std::span(tokens).first(100);
    sources_.open(of);
    for (std::size_t at = 100; at < tokens.size(); ++at) {
      of.tokens = std::span(tokens).first(at);
      sources_.propose(of, {}, kSuffix);
      sources_.commit(of, std::span(tokens).subspan(at, 1));
    }
    sources_.close(0, false);
  }
  EXPECT_EQ(allocations, before);
}

}  // namespace
}  // namespace foretoken
