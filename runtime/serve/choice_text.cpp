#include "runtime/serve/choice_text.h"

namespace foretoken {
namespace {

std::int64_t count_characters(std::string_view text) {
  std::int64_t n = 0;
  for (char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

}  // namespace

ChoiceText::Output ChoiceText::push(std::span<const TokenId> tokens,
                                    std::span<const TokenLogprob> logprobs) {
  Output output;
  for (std::size_t i = 0; i < tokens.size() && !matched_; ++i) {
    ++n_tokens_;
    if (i < logprobs.size()) held_.push_back({{logprobs[i], decoded_characters_}, decoded_bytes_});
    std::string text = decoder_.push(tokens[i]);
    if (text.empty()) continue;
    decoded_bytes_ += static_cast<std::int64_t>(text.size());
    decoded_characters_ += count_characters(text);
    StopMatcher::Output shown = matcher_.push(text);
    shown_bytes_ += static_cast<std::int64_t>(shown.text.size());
    output.text += shown.text;
    matched_ = std::move(shown.matched);
  }
  release(output, false);
  return output;
}

ChoiceText::Output ChoiceText::finish() {
  Output output;
  if (matched_) return output;
  StopMatcher::Output shown = matcher_.push(decoder_.finish());
  output.text = std::move(shown.text);
  matched_ = std::move(shown.matched);
  if (!matched_) output.text += matcher_.finish();
  shown_bytes_ += static_cast<std::int64_t>(output.text.size());
  release(output, !matched_);
  return output;
}

void ChoiceText::release(Output& output, bool all) {
  std::size_t n = 0;
  while (n < held_.size() && (all || held_[n].byte_offset < shown_bytes_))
    output.logprobs.push_back(std::move(held_[n++].shown));
  held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(n));
  if (matched_) held_.clear();
}

std::string token_text(const Tokenizer& tokenizer, TokenId token) {
  StreamDecoder decoder(tokenizer);
  std::string text = decoder.push(token);
  text += decoder.finish();
  return text.empty() ? std::string(tokenizer.bytes(token, true)) : text;
}

}  // namespace foretoken
