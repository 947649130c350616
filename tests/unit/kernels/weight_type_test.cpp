// The table of weight types against GGUF's published numbers, names and block sizes.
#include "foretoken/kernels/weight_type.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace foretoken::kernels {
namespace {

// ggml.h's enum ggml_type and the sizes of its blocks: every type of weights in files that people
// run, but for those of section "not yet".
struct Published {
  int number;
  const char* name;
  int values, bytes;
};
constexpr Published kPublished[] = {
    {0, "F32", 1, 4},       {1, "F16", 1, 2},       {2, "Q4_0", 32, 18},    {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},    {7, "Q5_1", 32, 24},    {8, "Q8_0", 32, 34},    {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110}, {12, "Q4_K", 256, 144}, {13, "Q5_K", 256, 176}, {14, "Q6_K", 256, 210},
    {20, "IQ4_NL", 32, 18}, {30, "BF16", 1, 2},
};
// Numbers of types without kernels: activations' own (Q8_1, Q8_K), whole numbers and doubles, types
// of importance matrices, ternary and 4-bit float ones, and the numbers that were withdrawn.
constexpr int kNotYet[] = {4,  5,  9,  15, 16, 17, 18, 19, 21, 22, 23, 24, 25, 26,
                           27, 28, 29, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41};

TEST(WeightTypes, HaveGgufsNumbersNamesAndBlocks) {
  for (const Published& p : kPublished) {
    const auto type = weight_type_of_ggml(static_cast<std::uint32_t>(p.number));
    ASSERT_TRUE(type) << p.name;
    EXPECT_STREQ(weight_type_name(*type), p.name);
    EXPECT_EQ(weight_block_values(*type), p.values) << p.name;
    EXPECT_EQ(weight_row_bytes(*type, p.values), static_cast<std::size_t>(p.bytes)) << p.name;
  }
}

TEST(WeightTypes, AreCompleteAgainstGgufsNumbers) {
  std::set<int> seen;
  for (const Published& p : kPublished) EXPECT_TRUE(seen.insert(p.number).second) << p.number;
  for (const int number : kNotYet) {
    EXPECT_TRUE(seen.insert(number).second) << number;
    EXPECT_FALSE(weight_type_of_ggml(static_cast<std::uint32_t>(number))) << number;
  }
  EXPECT_EQ(static_cast<int>(seen.size()), 42);
  EXPECT_EQ(*seen.rbegin(), 41);
  for (const std::uint32_t none : {42u, 0xffffffffu}) EXPECT_FALSE(weight_type_of_ggml(none));
  for (const WeightFormat& format : kWeightFormats)
    EXPECT_TRUE(format.ggml_type < 0 || seen.contains(format.ggml_type)) << format.name;
}

TEST(WeightTypes, AreRowsInOrderWithNamesOfTheirOwn) {
  std::set<std::string> names, tensors;
  for (int i = 0; i < kWeightTypes; ++i) {
    const WeightFormat& format = kWeightFormats[i];
    EXPECT_EQ(static_cast<int>(format.type), i);
    EXPECT_TRUE(names.insert(format.name).second) << format.name;
    if (format.safetensors.empty()) continue;
    EXPECT_TRUE(tensors.insert(std::string(format.safetensors)).second) << format.name;
    EXPECT_EQ(weight_type_of_safetensors(format.safetensors), format.type);
  }
  EXPECT_EQ(weight_type_of_safetensors("BF16"), WeightType::kBF16);
  for (const char* none : {"", "I64", "bf16"}) EXPECT_FALSE(weight_type_of_safetensors(none));
}

}  // namespace
}  // namespace foretoken::kernels
