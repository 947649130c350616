#include "runtime/model/vocabulary_rows.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "foretoken/kernels/convert.h"
#include "tests/support/gguf_writer.h"

namespace foretoken {
namespace {

using testing::GgufWriter;
using testing::TemporaryDirectory;
using testing::TinyModelOptions;
using testing::write_tiny_model;

constexpr int kTiedHidden = 128;

std::shared_ptr<const VocabularyRows> rows_of(const TemporaryDirectory& folder,
                                              std::uint32_t ggml_type) {
  TinyModelOptions options;
  options.hidden = kTiedHidden;
  options.ggml_type = ggml_type;
  if (ggml_type == 1 || ggml_type == 30) {  // an output matrix of 16-bit floats in a float model
    options.ggml_type = 0;
    options.first = [=](GgufWriter& w) {
      std::mt19937_64 random(3);
      std::normal_distribution<float> normal;
      std::vector<std::uint8_t> bytes;
      for (int i = 0; i < kTiedHidden * options.n_vocab; ++i) {
        const float value = normal(random);
        std::uint16_t bits = 0;
        float scale = 1;
        if (ggml_type == 1)
          kernels::encode_half(&value, 1, &bits, &scale);
        else
          std::memcpy(&bits, reinterpret_cast<const char*>(&value) + 2, 2);
        bytes.push_back(std::uint8_t(bits & 255));
        bytes.push_back(std::uint8_t(bits >> 8));
      }
      w.add_raw_tensor("output.weight", {kTiedHidden, options.n_vocab}, ggml_type,
                       std::move(bytes));
    };
  }
  const std::string path = folder.file(std::to_string(ggml_type) + ".gguf");
  write_tiny_model(path, options);
  auto rows = VocabularyRows::open(path);
  EXPECT_TRUE(rows) << rows.error().message;
  return rows ? *rows : nullptr;
}

// Values of the file's row, by the tensor itself.
std::vector<float> file_row(const VocabularyRows& rows, TokenId token) {
  const GgufTensor& tensor = *rows.file()->find("output.weight");
  const auto type = kernels::weight_type_of_ggml(tensor.ggml_type).value();
  const std::size_t bytes = kernels::weight_row_bytes(type, kTiedHidden);
  std::vector<float> values(kTiedHidden);
  kernels::dequantize_file_row(type, tensor.data.data() + std::size_t(token) * bytes, kTiedHidden,
                               values.data());
  return values;
}

// What a head multiplies with, what the trainer trains against and what is packed are one.
TEST(VocabularyRows, OfFloatsAreQ8_0InHeadsAndOthersAreTheFiles) {
  const TemporaryDirectory folder;
  for (const std::uint32_t ggml_type : {0u, 1u, 30u, 8u, 2u}) {  // F32, F16, BF16; Q8_0, Q4_0
    const auto rows = rows_of(folder, ggml_type);
    ASSERT_NE(rows, nullptr);
    std::vector<TokenId> ids(kernels::kPackRows);
    std::iota(ids.begin(), ids.end(), 7);
    auto packed = rows->pack_output_rows(ids);
    ASSERT_TRUE(packed) << packed.error().message;
    const bool floats = ggml_type == 0 || ggml_type == 1 || ggml_type == 30;
    const auto in_file = kernels::weight_type_of_ggml(ggml_type).value();
    const auto type = floats ? kernels::WeightType::kQ8_0 : in_file;
    EXPECT_EQ(packed->packed.type, type);
    EXPECT_EQ(rows->output_row_bytes(), kernels::weight_row_bytes(type, kTiedHidden));
    bool rounded = false;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      std::vector<float> expected = file_row(*rows, ids[i]), row(kTiedHidden),
                         unpacked(kTiedHidden);
      const std::vector<float> exact = expected;
      if (floats) {
        std::vector<std::byte> blocks(rows->output_row_bytes());
        kernels::quantize_q8_0(expected.data(), kTiedHidden, blocks.data());
        kernels::dequantize_file_row(type, blocks.data(), kTiedHidden, expected.data());
      }
      rows->output(ids[i], row.data());
      kernels::dequantize_row(packed->packed, std::int64_t(i), unpacked.data());
      EXPECT_EQ(row, expected);
      EXPECT_EQ(unpacked, expected);
      rounded = rounded || expected != exact;
    }
    EXPECT_EQ(rounded, floats);
  }
}

}  // namespace
}  // namespace foretoken
