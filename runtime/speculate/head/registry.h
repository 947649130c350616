// The architectures of learned heads, one row each: the kind that a weight bundle names, and how
// its head is made from the bundle's tensors. Everything that takes a bundle (server, gate, replay,
// tools) goes through it. Read-only, any thread. docs/ADDING.md adds one.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "foretoken/protocol/bundle.h"
#include "runtime/model/vocabulary_rows.h"
#include "runtime/speculate/head/draft_head.h"

namespace foretoken {

using HeadPointer = std::shared_ptr<const DraftHead>;

struct HeadRow {
  std::string_view kind;  // Bundle::kind; part of the bundle's format
  // Errors "kind: ...", "shape: ...", "taps: ...", "non-finite: ..." and those of the format. Packs
  // weights: not for the engine thread.
  Result<HeadPointer> (*make)(const Bundle&, const std::shared_ptr<const VocabularyRows>&);
};

// Null: no head of that kind ("fusion", a bundle without a head, among them).
const HeadRow* find_head(std::string_view kind);
std::string head_kinds();  // "\"head\" or \"eagle3\"", for messages

}  // namespace foretoken
