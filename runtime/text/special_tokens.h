// Finds tokens that are spelled out in text before it is split into words: the leftmost, and of
// those that begin there the longest. A byte trie, so a position costs at most the longest token.
// Immutable after filling; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>

#include "foretoken/protocol/ids.h"

namespace foretoken {

class SpecialTokens {
 public:
  void add(std::string_view text, TokenId token);
  struct Match {
    std::size_t begin = std::string_view::npos;  // npos: none
    std::size_t bytes = 0;
    TokenId token = -1;
  };
  Match find(std::string_view text, std::size_t from) const;

 private:
  static std::uint64_t edge(std::uint32_t node, char byte) {
    return std::uint64_t(node) << 8 | static_cast<unsigned char>(byte);
  }
  std::array<bool, 256> begins_{};
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;
  std::unordered_map<std::uint32_t, TokenId> ends_;
  std::uint32_t nodes_ = 1;  // 0 is the root
};

}  // namespace foretoken
