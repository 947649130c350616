// The names that the registry gives: to flags, statistics and logs.
#include "runtime/speculate/registry.h"

#include <gtest/gtest.h>

namespace foretoken {
namespace {

TEST(Registry, ATypeIsTheKindsThatItLetsDraft) {
  const auto kinds_of = [](std::string_view name) {
    std::string kinds;
    const auto type = parse_spec_type(name);
    for (const SpeculatorRow& row : kSpeculators)
      if (type && type->has(row.kind)) kinds += std::string(row.name) + " ";
    return type ? std::string(type->name) + ": " + kinds : "unknown";
  };
  EXPECT_EQ(kinds_of("none"), "none: ");
  EXPECT_EQ(kinds_of("ngram"), "ngram: ngram ");
  EXPECT_EQ(kinds_of("head"), "head: fusion head ");
  EXPECT_EQ(kinds_of("fusion"), "unknown") << "a tier of the head's";
  EXPECT_EQ(kinds_of(""), "unknown");
  EXPECT_EQ(kinds_of("auto2"), "unknown");
  for (const SpeculatorRow& row : kSpeculators) {
    EXPECT_TRUE(spec_type("auto").has(row.kind));
    EXPECT_TRUE(parse_spec_type(row.type)->has(row.kind));
  }
}

TEST(Registry, EveryTypeIsNamedOnce) {
  std::string names;
  for (const SpecType& type : all_spec_types()) {
    EXPECT_EQ(parse_spec_type(type.name), type);
    names += std::string(type.name) + " ";
  }
  EXPECT_EQ(names, "auto suffix ngram head model none ");
}

TEST(Registry, OnlyWhatIsNothingWithoutADraftModelNeedsOne) {
  EXPECT_TRUE(spec_type("model").needs_draft_model());
  EXPECT_FALSE(spec_type("auto").needs_draft_model());
  EXPECT_FALSE(spec_type("none").needs_draft_model());
}

TEST(Registry, HelpSaysWhatDraftsUnderEveryType) {
  const std::string help = spec_type_help();
  for (const SpeculatorRow& row : kSpeculators) {
    const std::string after_type = "; " + std::string(row.type) + ": ";
    const std::size_t at = help.find(after_type), end = help.find(';', at + 1);
    ASSERT_NE(at, std::string::npos) << help;
    EXPECT_FALSE(row.help.empty()) << row.name;
    EXPECT_NE(help.substr(at, end - at).find(row.help), std::string::npos) << help;
  }
}

}  // namespace
}  // namespace foretoken
