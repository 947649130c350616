#include "runtime/speculate/ngram_index.h"

#include <algorithm>

namespace foretoken {
namespace {

std::uint64_t hash_gram(const TokenId* gram, int length) {
  std::uint64_t h = 0x9e3779b97f4a7c15u * std::uint64_t(length);
  for (int i = 0; i < length; ++i) {
    h ^= std::uint32_t(gram[i]);
    h *= 0xff51afd7ed558ccdu;
    h ^= h >> 32;
  }
  return h;
}

std::size_t slots_for(std::size_t n_tokens) {
  std::size_t slots = 128;
  while (slots < 2 * n_tokens) slots *= 2;
  return slots;
}

}  // namespace

void NgramIndex::reserve(std::int64_t n_tokens) {
  reserved_ = std::max(reserved_, std::size_t(n_tokens));
  tokens_.reserve(reserved_);
  for (auto& table : slots_) table.reserve(slots_for(reserved_));
}

void NgramIndex::clear() {
  tokens_.clear();
  for (auto& table : slots_) table.clear();
  limit_ = 0;
}

void NgramIndex::rehash(std::size_t capacity) {
  const std::size_t slots = slots_for(capacity);
  for (auto& table : slots_) table.assign(slots, 0u);
  mask_ = slots - 1;
  limit_ = slots / 2;
  for (std::int64_t p = 1; p < size(); ++p) index_continuation(p);
}

void NgramIndex::make_room(std::size_t n_tokens) {
  if (n_tokens <= limit_) return;
  // By doubling, but not past what was reserved for.
  rehash(n_tokens <= reserved_ ? std::min(2 * n_tokens, reserved_) : 2 * n_tokens);
}

std::size_t NgramIndex::find_slot(int length, const TokenId* gram) const {
  const auto& table = slots_[std::size_t(length - 1)];
  std::size_t slot = hash_gram(gram, length) & mask_;
  while (table[slot] != 0) {
    const TokenId* known = tokens_.data() + table[slot] - length;
    if (std::equal(gram, gram + length, known)) break;
    slot = (slot + 1) & mask_;
  }
  return slot;
}

void NgramIndex::index_continuation(std::int64_t position) {
  const int longest = int(std::min<std::int64_t>(kMaxMatch, position));
  for (int length = 1; length <= longest; ++length) {
    const std::size_t slot = find_slot(length, tokens_.data() + position - length);
    slots_[std::size_t(length - 1)][slot] = std::uint32_t(position);
  }
}

void NgramIndex::append(TokenId token) {
  make_room(tokens_.size() + 1);
  tokens_.push_back(token);
  index_continuation(size() - 1);
}

void NgramIndex::append(std::span<const TokenId> tokens) {
  make_room(tokens_.size() + tokens.size());
  for (TokenId token : tokens) append(token);
}

int NgramIndex::tail(std::span<const TokenId> drafted, int n, TokenId* out) const {
  const int from_draft = int(std::min<std::size_t>(drafted.size(), std::size_t(n)));
  const int from_tokens = int(std::min<std::int64_t>(size(), std::int64_t(n - from_draft)));
  const int total = from_draft + from_tokens;
  std::copy(tokens_.end() - from_tokens, tokens_.end(), out + (n - total));
  std::copy(drafted.end() - from_draft, drafted.end(), out + (n - from_draft));
  return total;
}

std::optional<NgramIndex::Match> NgramIndex::find(std::span<const TokenId> drafted) const {
  if (tokens_.empty()) return std::nullopt;
  std::array<TokenId, kMaxMatch> suffix;
  const int known = tail(drafted, kMaxMatch, suffix.data());
  // A suffix of k tokens can only have occurred if its ending of k - 1 tokens did: go up from 1,
  // stop at the first miss. Text that repeats nothing costs one probe.
  std::uint32_t found = 0;
  int length = 0;
  while (length < known) {
    const TokenId* gram = suffix.data() + (kMaxMatch - length - 1);
    const std::uint32_t position = slots_[std::size_t(length)][find_slot(length + 1, gram)];
    if (position == 0) break;
    found = position;
    ++length;
  }
  if (length == 0) return std::nullopt;
  return Match{tokens_[found], length, std::int64_t(found)};
}

}  // namespace foretoken
