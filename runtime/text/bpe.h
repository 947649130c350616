// Byte-pair merges over token ids: a word's bytes become the tokens that repeatedly applying the
// lowest-ranked merge (leftmost first) leaves. Immutable after filling; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/ids.h"

namespace foretoken {

// GPT-2's printable spelling of bytes (a space is U+0120): token text to bytes; nullopt if it holds
// a character that stands for no byte.
std::optional<std::string> bytes_of_spelling(std::string_view spelling);

class MergeTable {
 public:
  struct Merge {
    std::int32_t rank;
    TokenId result;
  };
  // At most `n` merges will be added.
  explicit MergeTable(std::size_t n = 0);
  // Of a pair added twice the later one holds.
  void add(TokenId left, TokenId right, Merge merge);
  const Merge* find(TokenId left, TokenId right) const;

 private:
  // Open addressing, at most half full; key -1 is empty.
  struct Slot {
    std::int64_t key = -1;
    Merge merge{};
  };
  std::size_t slot_of(std::int64_t key) const;
  std::vector<Slot> slots_;
};

// Appends the tokens of a word given as its bytes' tokens. O(n log n).
void merge_word(const MergeTable& merges, std::vector<TokenId>& symbols, std::vector<TokenId>& out);

}  // namespace foretoken
