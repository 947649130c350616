// safetensors as hostile input: what is written is read back exactly, the bytes are those of the
// format's specification, every forged field is an error that names it, and no mutation crashes.
#include "runtime/files/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>

#include "tests/support/gguf_writer.h"

namespace foretoken {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TemporaryDirectory;

Result<std::unique_ptr<SafetensorsFile>> parse(std::span<const std::byte> bytes) {
  return SafetensorsFile::parse(bytes, "x.safetensors");
}

// A file from its header's text and as many bytes 0, 1, 2, ... of data.
std::vector<std::byte> file_of(const std::string& header, std::size_t n_data) {
  const std::uint64_t n = header.size();
  std::vector<std::byte> out(8 + header.size() + n_data);
  std::memcpy(out.data(), &n, 8);
  std::memcpy(out.data() + 8, header.data(), header.size());
  for (std::size_t i = 0; i < n_data; ++i) out[8 + header.size() + i] = std::byte(i);
  return out;
}

void expect_error(const std::string& header, std::size_t n_data,
                  std::initializer_list<std::string> parts) {
  const auto bytes = file_of(header, n_data);
  const auto file = parse(bytes);
  ASSERT_FALSE(file.ok()) << header;
  EXPECT_THAT(file.error().message, HasSubstr("x.safetensors: "));
  for (const std::string& part : parts) EXPECT_THAT(file.error().message, HasSubstr(part));
}

struct Sample {
  std::vector<std::byte> data{std::size_t(64)};
  std::vector<Safetensor> tensors() {
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = std::byte(7 * i + 1);
    const std::span<const std::byte> all(data);
    return {{"b.weight", SafetensorType::kBF16, {3, 2}, all.first(12)},
            {"t2d", SafetensorType::kBool, {5}, all.subspan(12, 5)},
            {"d2t", SafetensorType::kI64, {2}, all.subspan(20, 16)},
            {"a.weight", SafetensorType::kBF16, {2}, all.subspan(40, 4)},
            {"scalar", SafetensorType::kF32, {}, all.subspan(44, 4)},
            {"none", SafetensorType::kF32, {0, 4}, all.subspan(48, 0)}};
  }
};

TEST(Safetensors, AreReadBackExactly) {
  Sample sample;
  const auto tensors = sample.tensors();
  const TemporaryDirectory folder;
  const auto bytes = write_safetensors(tensors, {{"format", "pt"}});
  std::ofstream(folder.file("a.safetensors"), std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
  auto opened = SafetensorsFile::open(folder.file("a.safetensors"));
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const SafetensorsFile& file = **opened;
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const Safetensor& wanted : tensors) {
    const Safetensor* found = file.find(wanted.name);
    ASSERT_NE(found, nullptr) << wanted.name;
    EXPECT_EQ(found->type, wanted.type);
    EXPECT_EQ(found->shape, wanted.shape);
    EXPECT_TRUE(std::ranges::equal(found->data, wanted.data)) << wanted.name;
    // As the format wants it: each tensor aligned to its elements.
    EXPECT_EQ(std::size_t(found->data.data() - file.tensors()[0].data.data()) %
                  safetensor_element_bytes(found->type),
              0u);
  }
  EXPECT_EQ(file.find("missing"), nullptr);
  EXPECT_EQ(file.metadata(), (SafetensorsMetadata{{"format", "pt"}}));
  // Written again from what was read: the same bytes.
  EXPECT_EQ(write_safetensors(file.tensors(), file.metadata()), bytes);
}

// The example of the format's README, byte by byte.
TEST(Safetensors, TheBytesAreTheSpecifications) {
  const std::vector<float> values = {1, -2};
  const std::vector<Safetensor> one = {
      {"w", SafetensorType::kF32, {2}, std::as_bytes(std::span(values))}};
  const auto bytes = write_safetensors(one);
  const std::string wanted = R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const std::size_t padded = (wanted.size() + 7) / 8 * 8;
  ASSERT_EQ(bytes.size(), 8 + padded + 8);
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  EXPECT_EQ(header, padded);
  const std::string text(reinterpret_cast<const char*>(bytes.data()) + 8, padded);
  EXPECT_EQ(text, wanted + std::string(padded - wanted.size(), ' '));
  EXPECT_EQ(std::memcmp(bytes.data() + 8 + padded, values.data(), 8), 0);
}

TEST(Safetensors, ForgedFieldsAreNamed) {
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  EXPECT_TRUE(parse(file_of(good, 8)).ok());
  expect_error(good, 7, {"tensor a", "data_offsets", "within 7 bytes"});
  expect_error(good, 9, {"1 bytes after the last tensor"});
  expect_error("[]", 0, {"not a JSON object"});
  expect_error("{\"a\"", 0, {"header"});
  expect_error(R"({"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", 8,
               {"tensor a", "dtype", "F33"});
  expect_error(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8, {"tensor a", "dtype: nothing"});
  expect_error(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8,
               {"tensor a", "8 bytes found", "wants 12"});
  expect_error(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, {"shape: [-2]"});
  expect_error(R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", 8, {"shape"});
  expect_error(
      R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}})", 8,
      {"shape", "2^48"});
  expect_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, {"data_offsets"});
  expect_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8, {"data_offsets"});
  expect_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}})", 8,
               {"tensor a", "more", "not known"});
  expect_error(R"({"a":[]})", 0, {"tensor a", "object"});
  expect_error(R"({"__metadata__":{"k":1}})", 0, {"__metadata__.k"});
  // Gaps, overlaps and a name given twice.
  expect_error(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
               R"("b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
               12, {"tensor b", "begins at 8, wanted 4"});
  expect_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
               R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
               8, {"tensor b", "begins at 4, wanted 8"});
  expect_error(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
               R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
               8, {"tensor a", "wanted 0"});
  std::vector<std::byte> forged = file_of(good, 8);
  forged[7] = std::byte{0x7f};  // a header of exabytes
  const auto file = parse(forged);
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(file.error().message, HasSubstr("header length"));
}

TEST(Safetensors, EveryTruncationAndNoMutationIsTrusted) {
  Sample sample;
  const auto good = write_safetensors(sample.tensors(), {{"format", "pt"}});
  ASSERT_TRUE(parse(good).ok());
  for (std::size_t n = 0; n < good.size(); ++n)
    EXPECT_FALSE(parse(std::span(good).first(n)).ok()) << "cut at " << n;
  std::mt19937_64 random(23);
  const std::string tokens = "{}[]\",:0129-eE\\ \n\0ax";
  std::size_t refused = 0, read = 0, sum = 0;
  for (int i = 0; i < 20'000; ++i) {
    auto bytes = good;
    for (int edits = 1 + int(random() % 4); edits > 0; --edits) {
      const std::size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] ^= std::byte(1u << random() % 8);
          break;
        case 1:
          bytes[at] = std::byte(tokens[random() % tokens.size()]);
          break;
        case 2:
          bytes.erase(bytes.begin() + std::ptrdiff_t(at));
          break;
        default:
          bytes.insert(bytes.begin() + std::ptrdiff_t(at), std::byte('0' + random() % 10));
      }
      if (bytes.empty()) break;
    }
    const auto file = parse(bytes);
    if (!file) {
      ++refused;
      continue;
    }
    ++read;
    // Everything that is handed out must be readable.
    for (const Safetensor& t : (*file)->tensors())
      for (const std::byte b : t.data) sum += std::size_t(b);
  }
  EXPECT_GT(refused, 1000u);  // both ways must be taken
  EXPECT_GT(read, 300u);
  EXPECT_GT(sum, 0u);
}

}  // namespace
}  // namespace foretoken
