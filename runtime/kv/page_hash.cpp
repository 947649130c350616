#include "runtime/kv/page_hash.h"

#include <sodium.h>

#include <algorithm>

#include "foretoken/kernels/kv_page.h"

namespace foretoken {

PageHash hash_bytes(std::string_view bytes) {
  PageHash hash;
  crypto_generichash(hash.data(), hash.size(), reinterpret_cast<const unsigned char*>(bytes.data()),
                     bytes.size(), nullptr, 0);
  return hash;
}

PageChain::PageChain(const PageHash& root, std::uint64_t owner, std::int64_t max_tokens)
    : root_(root), owner_(owner), max_pages_(std::size_t(max_tokens / kernels::kPageTokens)) {
  pages_.reserve(max_pages_);
}

void PageChain::extend(std::span<const TokenId> tokens) {
  const std::size_t whole = std::min(max_pages_, tokens.size() / kernels::kPageTokens);
  while (pages_.size() < whole) {
    const PageHash& previous = pages_.empty() ? root_ : pages_.back();
    const auto page = tokens.subspan(pages_.size() * kernels::kPageTokens, kernels::kPageTokens);
    std::array<unsigned char, sizeof(PageHash) + kernels::kPageTokens * 4> input;
    auto out = std::copy(previous.begin(), previous.end(), input.begin());
    for (const TokenId token : page) {
      for (int shift = 0; shift < 32; shift += 8)
        *out++ = static_cast<unsigned char>(std::uint32_t(token) >> shift);
    }
    PageHash hash;
    crypto_generichash(hash.data(), hash.size(), input.data(), input.size(), nullptr, 0);
    pages_.push_back(hash);
  }
}

}  // namespace foretoken
