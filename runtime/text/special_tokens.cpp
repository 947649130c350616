#include "runtime/text/special_tokens.h"

namespace foretoken {

void SpecialTokens::add(std::string_view text, TokenId token) {
  if (text.empty()) return;
  begins_[static_cast<unsigned char>(text[0])] = true;
  std::uint32_t node = 0;
  for (const char byte : text) {
    const auto [it, added] = edges_.emplace(edge(node, byte), nodes_);
    if (added) ++nodes_;
    node = it->second;
  }
  ends_.emplace(node, token);  // of two tokens with one spelling the first holds
}

SpecialTokens::Match SpecialTokens::find(std::string_view text, std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    if (!begins_[static_cast<unsigned char>(text[begin])]) continue;
    Match longest;
    std::uint32_t node = 0;
    for (std::size_t at = begin; at < text.size(); ++at) {
      const auto next = edges_.find(edge(node, text[at]));
      if (next == edges_.end()) break;
      node = next->second;
      if (const auto end = ends_.find(node); end != ends_.end())
        longest = {begin, at + 1 - begin, end->second};
    }
    if (longest.token >= 0) return longest;
  }
  return {};
}

}  // namespace foretoken
