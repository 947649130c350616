#include "runtime/speculate/head/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace foretoken {

// Each in its head's file.
Result<HeadPointer> recurrent_head_of(const Bundle&, const std::shared_ptr<const VocabularyRows>&);
Result<HeadPointer> eagle3_head_of(const Bundle&, const std::shared_ptr<const VocabularyRows>&);

namespace {

constexpr std::array kHeads = {
    HeadRow{"head", recurrent_head_of},
    HeadRow{"eagle3", eagle3_head_of},
};

}  // namespace

const HeadRow* find_head(std::string_view kind) {
  const auto found = std::ranges::find(kHeads, kind, &HeadRow::kind);
  return found == kHeads.end() ? nullptr : &*found;
}

std::string head_kinds() {
  std::string kinds;
  for (const HeadRow& row : kHeads)
    kinds += fmt::format("{}\"{}\"", kinds.empty() ? "" : " or ", row.kind);
  return kinds;
}

}  // namespace foretoken
