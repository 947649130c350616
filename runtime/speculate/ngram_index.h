// The n-grams of one request's own context: for the longest suffix that occurred before, the token
// that followed its most recent occurrence ("prompt lookup": Saxena 2023), up to kMaxMatch tokens
// of suffix. Holds committed tokens only, so nothing is ever rolled back; what was drafted
// so far is passed to each look-up as a hypothetical ending. Owned by a sequence's slot, called by
// the engine thread. append() is O(kMaxMatch), find() is too; neither allocates while size() stays
// below reserve(). Invariant: the table of length k maps the k-gram tokens[p-k, p) to the largest
// such p < size(), exactly (slots are compared by their tokens, so a hash collision costs a probe,
// never a wrong answer).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "foretoken/protocol/ids.h"

namespace foretoken {

class NgramIndex {
 public:
  // Longer suffixes rarely change which continuation is chosen; where they do, as in code that is
  // edited, `suffix` knows (kinds/suffix.cpp).
  static constexpr int kMaxMatch = 6;

  struct Match {
    TokenId next = 0;           // the token that followed
    int length = 0;             // of the suffix that matched, 1..kMaxMatch
    std::int64_t position = 0;  // index of `next` in tokens()
  };

  void reserve(std::int64_t n_tokens);  // memory only: a short context touches little of it
  void clear();                         // keeps the memory
  void append(TokenId token);
  void append(std::span<const TokenId> tokens);

  std::span<const TokenId> tokens() const { return tokens_; }
  std::int64_t size() const { return std::int64_t(tokens_.size()); }

  // The continuation of the longest suffix of tokens() followed by `drafted`; nullopt: not even the
  // last token occurred before.
  std::optional<Match> find(std::span<const TokenId> drafted) const;

  // Copies the last min(n, available) tokens of tokens() followed by `drafted` to the end of `out`
  // [n]; returns how many.
  int tail(std::span<const TokenId> drafted, int n, TokenId* out) const;

 private:
  std::size_t find_slot(int length, const TokenId* gram) const;
  void make_room(std::size_t n_tokens);
  void rehash(std::size_t capacity);
  void index_continuation(std::int64_t position);

  std::vector<TokenId> tokens_;
  // One table a length; a slot holds the position of the continuation (never 0: a gram precedes
  // it).
  std::array<std::vector<std::uint32_t>, kMaxMatch> slots_;
  std::size_t mask_ = 0;
  std::size_t limit_ = 0;     // tokens the tables hold at a load of at most one half
  std::size_t reserved_ = 0;  // tokens they may grow to without allocating
};

}  // namespace foretoken
