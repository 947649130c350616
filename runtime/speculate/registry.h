// The speculators, one row each: its number in traces, its name, by which --spec-type it may draft,
// what --help says of it, what it needs. Names in flags, /stats, /metrics, /v1/speculator and logs
// come from here, tables by kind are sized by kSpeculatorKinds (ids.h); a token that two name is
// the earlier's. docs/ADDING.md adds one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/ids.h"

namespace foretoken {

class Speculator;
struct DraftSourcesOptions;
// Of kinds/NAME.cpp.
std::unique_ptr<Speculator> make_ngram(const DraftSourcesOptions& options);
std::unique_ptr<Speculator> make_fusion(const DraftSourcesOptions& options);
std::unique_ptr<Speculator> make_suffix(const DraftSourcesOptions& options);

struct SpeculatorRow {
  SpeculatorKind kind;    // part of the trace format: never given to another
  std::string_view name;  // in /stats, /metrics, logs
  std::string_view type;  // the --spec-type that lets it draft; `auto` lets all
  std::string_view help;  // what drafts, in a few words
  // Position by position (speculator.h); null: the portfolio runs it in steps.
  std::unique_ptr<Speculator> (*make)(const DraftSourcesOptions&) = nullptr;
  bool draft_model = false;  // needs a draft model
  bool learned = false;      // drafts by learned weights
};

inline constexpr SpeculatorRow kSpeculators[] = {
    {.kind = SpeculatorKind{5},
     .name = "suffix",
     .type = "suffix",
     .help = "what followed the longest repeat in this text",
     .make = make_suffix},
    {.kind = SpeculatorKind::kNgram,
     .name = "ngram",
     .type = "ngram",
     .help = "what followed in this text and in recent traffic",
     .make = make_ngram},
    {.kind = SpeculatorKind::kFusion,
     .name = "fusion",
     .type = "head",
     .help = "a learned choice among ngram's candidates",
     .make = make_fusion,
     .learned = true},
    {.kind = SpeculatorKind::kModel,
     .name = "model",
     .type = "model",
     .help = "a draft model",
     .draft_model = true},
    {.kind = SpeculatorKind::kHead,
     .name = "head",
     .type = "head",
     .help = "a learned head",
     .learned = true},
};

// One that the code names: a name that no row has does not compile.
consteval SpeculatorKind speculator_kind(std::string_view name) {
  for (const SpeculatorRow& row : kSpeculators)
    if (row.name == name) return row.kind;
  throw "no such speculator";
}

// The speculators that may draft, under the name that --spec-type gives them.
struct SpecType {
  std::string_view name;
  std::uint32_t kinds = 0;  // a bit a kind

  constexpr bool has(SpeculatorKind kind) const { return ((kinds >> int(kind)) & 1u) != 0; }
  constexpr bool any() const { return kinds != 0; }
  constexpr bool only(SpeculatorKind kind) const { return kinds == 1u << int(kind); }
  constexpr bool operator==(const SpecType& other) const { return kinds == other.kinds; }
  constexpr SpecType without(SpeculatorKind kind) const {
    return {name, kinds & ~(1u << int(kind))};
  }
  // Before anything was learned: what drafts by learned weights is silent beside what does not.
  constexpr SpecType unlearned() const {
    SpecType rest{name};
    for (const SpeculatorRow& row : kSpeculators)
      if (has(row.kind) && row.make && !row.learned) rest.kinds |= 1u << int(row.kind);
    return rest.any() ? rest : *this;
  }
  // Nothing can draft without a draft model.
  constexpr bool needs_draft_model() const {
    for (const SpeculatorRow& row : kSpeculators)
      if (has(row.kind) && !row.draft_model) return false;
    return any();
  }
};

constexpr std::optional<SpecType> parse_spec_type(std::string_view name) {
  SpecType type{name};
  for (const SpeculatorRow& row : kSpeculators) {
    if (name != "auto" && name != row.type) continue;
    type.name = name == "auto" ? "auto" : row.type;
    type.kinds |= 1u << int(row.kind);
  }
  if (!type.any() && name != "none") return std::nullopt;
  if (!type.any()) type.name = "none";
  return type;
}
// One that the code names: a name that no row has does not compile.
consteval SpecType spec_type(std::string_view name) { return parse_spec_type(name).value(); }

// Kinds by their own names, where no --spec-type is just these.
template <class... Names>
consteval SpecType kinds_named(Names... names) {
  return {"kinds", ((1u << int(speculator_kind(names))) | ...)};
}

// "auto", those of the rows, "none".
std::vector<SpecType> all_spec_types();
std::string spec_type_help();  // what drafts under each of them, for --help

}  // namespace foretoken
