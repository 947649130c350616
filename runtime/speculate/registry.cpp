#include "runtime/speculate/registry.h"

#include <fmt/format.h>

#include <algorithm>

namespace foretoken {
namespace {

constexpr bool rows_are_distinct() {
  for (const SpeculatorRow& a : kSpeculators) {
    if (a.kind == SpeculatorKind::kNone || int(a.kind) >= kSpeculatorKinds) return false;
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

std::string spec_type_help() {
  std::string help = "auto: whichever pays";
  for (const SpecType& type : all_spec_types()) {
    std::string of_type;
    for (const SpeculatorRow& row : kSpeculators)
      if (row.type == type.name) of_type += (of_type.empty() ? "" : ", ") + std::string(row.help);
    if (!of_type.empty()) help += fmt::format("; {}: {}", type.name, of_type);
  }
  return help;
}

}  // namespace foretoken
