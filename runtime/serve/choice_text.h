// From one choice's tokens to the text a client may see: whole UTF-8 characters only, nothing of a
// stop string, log-probabilities released with the text they belong to. One a choice; not
// thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/engine/request.h"
#include "runtime/text/tokenizer.h"

namespace foretoken {

struct ShownLogprob {
  TokenLogprob logprob;
  std::int64_t text_offset = 0;  // in characters of the choice's text
};

class ChoiceText {
 public:
  ChoiceText(const Tokenizer& tokenizer, std::vector<std::string> stops)
      : decoder_(tokenizer), matcher_(std::move(stops)) {}

  struct Output {
    std::string text;
    std::vector<ShownLogprob> logprobs;
  };
  // Feeds tokens until they end or a stop string is found; the tokens after it are not looked at.
  Output push(std::span<const TokenId> tokens, std::span<const TokenLogprob> logprobs);
  Output finish();  // what was held back; nothing after a stop string
  const std::optional<std::string>& matched_stop() const { return matched_; }
  std::int64_t n_tokens() const { return n_tokens_; }  // looked at, the stop string's included

 private:
  struct Held {
    ShownLogprob shown;
    std::int64_t byte_offset;  // where its text begins
  };
  void release(Output& output, bool all);
  StreamDecoder decoder_;
  StopMatcher matcher_;
  std::vector<Held> held_;
  std::optional<std::string> matched_;
  std::int64_t n_tokens_ = 0, decoded_bytes_ = 0, decoded_characters_ = 0, shown_bytes_ = 0;
};

// One token's text for people: its bytes, invalid ones as U+FFFD, control tokens by their name.
std::string token_text(const Tokenizer& tokenizer, TokenId token);

}  // namespace foretoken
