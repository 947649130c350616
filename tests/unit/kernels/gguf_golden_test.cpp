// File blocks mean what the gguf package says they mean; see tests/golden/gguf/make_golden.py.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "fixtures.h"

namespace foretoken::kernels {
namespace {

constexpr std::size_t kRows = 4, kValues = 512;

std::vector<char> read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<WeightType> gguf_types() {
  std::vector<WeightType> types;
  for (const WeightFormat& format : kWeightFormats)
    if (format.ggml_type > 0) types.push_back(format.type);  // F32, number 0, is itself
  return types;
}

class GgufGolden : public ::testing::TestWithParam<WeightType> {};
INSTANTIATE_TEST_SUITE_P(Types, GgufGolden, ::testing::ValuesIn(gguf_types()),
                         [](const auto& info) { return weight_type_name(info.param); });

TEST_P(GgufGolden, DequantizesBitExactly) {
  const WeightType type = GetParam();
  const std::vector<char> golden =
      read_file(std::string(FORETOKEN_GOLDEN_DIR) + "/gguf/" + weight_type_name(type) + ".bin");
  const std::size_t row_bytes = weight_row_bytes(type, kValues);
  ASSERT_EQ(golden.size(), kRows * (row_bytes + kValues * 4));
  const auto* rows = reinterpret_cast<const std::byte*>(golden.data());
  std::vector<float> expected(kRows * kValues), got(kRows * kValues);
  std::memcpy(expected.data(), rows + kRows * row_bytes, expected.size() * 4);
  for (std::size_t r = 0; r < kRows; ++r)
    dequantize_file_row(type, rows + r * row_bytes, kValues, got.data() + r * kValues);
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(got[i], expected[i]) << "row " << i / kValues << " value " << i % kValues;
}

}  // namespace
}  // namespace foretoken::kernels
