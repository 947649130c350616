#include "runtime/text/tokenizer.h"
#include "runtime/unicode/unicode.h"

namespace foretoken {

std::string StreamDecoder::push(TokenId token) {
  pending_ += tokenizer_.bytes(token);
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Step step = utf8_step(rest);
    if (step.kind == Utf8Step::Kind::kIncomplete) break;
    out += step.kind == Utf8Step::Kind::kCharacter ? rest.substr(0, std::size_t(step.bytes))
                                                   : kReplacement;
    rest.remove_prefix(std::size_t(step.bytes));
  }
  pending_.erase(0, pending_.size() - rest.size());
  return out;
}

std::string StreamDecoder::finish() {
  if (pending_.empty()) return {};
  pending_.clear();
  return std::string(kReplacement);
}

}  // namespace foretoken
