#include "runtime/speculate/registry.h"

#include <algorithm>

namespace foretoken {
namespace {

constexpr bool rows_are_distinct() {
  for (const SpeculatorRow& a : kSpeculators) {
    if (a.kind == SpeculatorKind::kNone || static_cast<int>(a.kind) >= kSpeculatorKinds)
      return false;
    if (a.type == "auto" || a.type == "none") return false;
    for (const SpeculatorRow& b : kSpeculators)
      if (&a != &b && (a.kind == b.kind || a.name == b.name)) return false;
  }
  return true;
}
static_assert(rows_are_distinct());

}  // namespace

std::vector<SpecType> all_spec_types() {
  std::vector<SpecType> types = {spec_type("auto")};
  for (const SpeculatorRow& row : kSpeculators) {
    const auto known = std::ranges::find(types, row.type, &SpecType::name);
    if (known == types.end()) types.push_back(*parse_spec_type(row.type));
  }
  types.push_back(spec_type("none"));
  return types;
}

}  // namespace foretoken
