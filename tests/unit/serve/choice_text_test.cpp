#include "runtime/serve/choice_text.h"

#include <gtest/gtest.h>

#include "runtime/serve/choice_seed.h"
#include "tests/unit/serve/fakes.h"

namespace foretoken {
namespace {

struct Fed {
  std::string text;
  std::vector<ShownLogprob> logprobs;
  std::optional<std::string> stop;
  std::int64_t n_tokens;
};

Fed feed(const std::string& bytes, std::vector<std::string> stops, std::size_t chunk) {
  ByteTokenizer tokenizer;
  ChoiceText choice(tokenizer, std::move(stops));
  Fed fed{};
  auto take = [&](ChoiceText::Output output) {
    // What a client sees is valid on its own: no chunk begins or ends within a character.
    EXPECT_TRUE(output.text.empty() || (static_cast<unsigned char>(output.text[0]) & 0xC0) != 0x80);
    fed.text += output.text;
    for (auto& entry : output.logprobs) fed.logprobs.push_back(entry);
  };
  for (std::size_t at = 0; at < bytes.size() && !choice.matched_stop(); at += chunk) {
    std::vector<TokenId> tokens;
    std::vector<TokenLogprob> logprobs;
    for (char c : bytes.substr(at, chunk)) {
      tokens.push_back(static_cast<unsigned char>(c));
      logprobs.push_back({tokens.back(), -1.f, {}});
    }
    take(choice.push(tokens, logprobs));
  }
  take(choice.finish());
  fed.stop = choice.matched_stop();
  fed.n_tokens = choice.n_tokens();
  return fed;
}

TEST(ChoiceText, ChunkingDoesNotChangeWhatIsShown) {
  const std::string text = "naïve 🙂 text, STOP here";
  for (std::size_t chunk : {1u, 2u, 3u, 5u, 100u}) {
    Fed all = feed(text, {}, chunk);
    EXPECT_EQ(all.text, text);
    EXPECT_EQ(all.logprobs.size(), text.size());
    Fed stopped = feed(text, {"STOP", "never"}, chunk);
    EXPECT_EQ(stopped.text, "naïve 🙂 text, ");
    EXPECT_EQ(stopped.stop, "STOP");
    // The count does not depend on how the engine grouped its tokens: law 1 holds for usage, too.
    EXPECT_EQ(stopped.n_tokens, static_cast<std::int64_t>(text.find("STOP") + 4));
    EXPECT_EQ(stopped.logprobs.size(), text.find("STOP"));
  }
}

TEST(ChoiceText, HeldBackBeginningsAreFlushed) {
  Fed fed = feed("it ends in STO", {"STOP"}, 1);
  EXPECT_EQ(fed.text, "it ends in STO");
  EXPECT_FALSE(fed.stop);
  EXPECT_EQ(fed.logprobs.size(), fed.text.size());
}

TEST(ChoiceText, AnIncompleteCharacterBecomesAReplacement) {
  EXPECT_EQ(feed("ab\xF0\x9F\x99", {}, 1).text, "ab\xEF\xBF\xBD");
}

TEST(ChoiceText, OffsetsCountCharacters) {
  Fed fed = feed("é!", {}, 1);
  ASSERT_EQ(fed.logprobs.size(), 3u);
  EXPECT_EQ(fed.logprobs[0].text_offset, 0);
  EXPECT_EQ(fed.logprobs[1].text_offset, 0);
  EXPECT_EQ(fed.logprobs[2].text_offset, 1);
}

// Published values: clients rely on choice i of seed s being a fixed seed.
TEST(ChoiceSeed, IsFixed) {
  EXPECT_EQ(choice_seed(42, 0), 42u);
  EXPECT_EQ(choice_seed(0, 1), 0xE220A8397B1DCDAFull);  // splitmix64's first output for state 0
  EXPECT_EQ(choice_seed(0, 2), 0x6E789E6AA1B965F4ull);  // and its second
  EXPECT_NE(choice_seed(42, 1), choice_seed(42, 2));
}

}  // namespace
}  // namespace foretoken
