// The names of a sequence's pages by content: BLAKE2b-256 over the previous page's name and the
// page's 64 tokens. The root covers everything else that the content depends on (model, KV mode,
// sink, window) and who may share it, so equal names mean equal pages: a collision would have to be
// found in BLAKE2b, whatever tokens a client sends. Any thread; one owner.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "foretoken/protocol/ids.h"

namespace foretoken {

using PageHash = std::array<std::uint8_t, 32>;

PageHash hash_bytes(std::string_view bytes);

class PageChain {
 public:
  PageChain() = default;
  // owner: whose pages these are, for PrefixIndex::forget().
  PageChain(const PageHash& root, std::uint64_t owner, std::int64_t max_tokens);

  void extend(std::span<const TokenId> tokens);   // names the whole pages that have no name yet
  bool empty() const { return max_pages_ == 0; }  // nothing of this sequence is kept or looked up
  std::span<const PageHash> pages() const { return pages_; }
  std::uint64_t owner() const { return owner_; }

 private:
  PageHash root_{};
  std::uint64_t owner_ = 0;
  std::size_t max_pages_ = 0;
  std::vector<PageHash> pages_;
};

}  // namespace foretoken
