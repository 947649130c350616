// GGUF as hostile input: valid files are read exactly, every truncation and every forged field is
// an error that names it, and no mutation crashes.
#include "runtime/files/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>

#include "tests/support/gguf_writer.h"

namespace foretoken {
namespace {

using ::testing::ElementsAre;
using testing::GgufWriter;
using ::testing::HasSubstr;
using testing::TemporaryDirectory;

Result<std::unique_ptr<GgufFile>> parse(const std::vector<std::uint8_t>& bytes) {
  return GgufFile::parse(std::as_bytes(std::span(bytes)), "x.gguf");
}

GgufWriter small_file() {
  GgufWriter w;
  w.add_string("general.architecture", "llama");
  w.add_uint32("llama.block_count", 2);
  w.add_float32("llama.rope.freq_base", 1e5f);
  w.add_bool("tokenizer.ggml.add_bos_token", true);
  w.add_strings("tokenizer.ggml.tokens", {"a", "", "\xC4\xA0 b"});
  w.add_int32s("tokenizer.ggml.token_type", {1, -3, 2});
  w.add_tensor("first.weight", {4, 3}, std::vector<float>(12, 1.5f));
  w.add_raw_tensor("second.weight", {32, 2}, 8, std::vector<std::uint8_t>(68, 7));  // Q8_0
  w.add_tensor("third.weight", {5}, {1, 2, 3, 4, 5});
  return w;
}

template <class T>
void put(std::vector<std::uint8_t>& bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}
std::size_t find(const std::vector<std::uint8_t>& bytes, std::string_view text) {
  const auto it = std::search(bytes.begin(), bytes.end(), text.begin(), text.end());
  EXPECT_NE(it, bytes.end()) << text;
  return static_cast<std::size_t>(it - bytes.begin());
}
void expect_error(const std::vector<std::uint8_t>& bytes,
                  std::initializer_list<std::string> parts) {
  const auto file = parse(bytes);
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(file.error().message, HasSubstr("x.gguf"));
  for (const std::string& part : parts) EXPECT_THAT(file.error().message, HasSubstr(part));
}

TEST(Gguf, ReadsMetadataAndTensorsExactly) {
  const auto bytes = small_file().bytes();
  auto opened = parse(bytes);
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const GgufFile& file = **opened;
  EXPECT_EQ(file.get_string("general.architecture"), "llama");
  EXPECT_EQ(file.get_uint("llama.block_count"), 2u);
  EXPECT_EQ(file.get_float("llama.rope.freq_base"), 1e5);
  EXPECT_EQ(file.get_bool("tokenizer.ggml.add_bos_token"), true);
  EXPECT_THAT(*file.get_strings("tokenizer.ggml.tokens"), ElementsAre("a", "", "\xC4\xA0 b"));
  EXPECT_THAT(*file.get_ints("tokenizer.ggml.token_type"), ElementsAre(1, -3, 2));
  EXPECT_EQ(file.get_uint("absent"), std::nullopt);
  EXPECT_EQ(file.get_uint("general.architecture"), std::nullopt);
  EXPECT_EQ(file.get_string("llama.block_count"), std::nullopt);
  EXPECT_EQ(file.get_ints("llama.block_count"), std::nullopt);
  EXPECT_EQ(file.keys().size(), 6u);
  ASSERT_EQ(file.tensors().size(), 3u);
  const GgufTensor* second = file.find("second.weight");
  ASSERT_NE(second, nullptr);
  EXPECT_THAT(second->shape, ElementsAre(32, 2));
  EXPECT_EQ(second->data.size(), 68u);
  EXPECT_EQ(second->data[0], std::byte{7});
  EXPECT_EQ(file.find("third"), nullptr);
  float fifth = 0;
  std::memcpy(&fifth, file.find("third.weight")->data.data() + 16, 4);
  EXPECT_EQ(fifth, 5.0f);
}

TEST(Gguf, AMappedFileCanBeReadAgainAfterRelease) {
  const TemporaryDirectory folder;
  small_file().write(folder.file("a.gguf"));
  auto file = GgufFile::open(folder.file("a.gguf"));
  ASSERT_TRUE(file.ok()) << file.error().message;
  const GgufTensor& tensor = (*file)->tensors()[1];
  (*file)->release(tensor);
  EXPECT_EQ(tensor.data[67], std::byte{7});
}

TEST(Gguf, MissingEmptyAndIrregularFilesAreErrors) {
  const TemporaryDirectory folder;
  const auto missing = GgufFile::open(folder.file("none.gguf"));
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  std::ofstream(folder.file("empty.gguf"));
  EXPECT_FALSE(GgufFile::open(folder.file("empty.gguf")).ok());
  EXPECT_FALSE(GgufFile::open(folder.path()).ok());
}

TEST(Gguf, EveryTruncationIsAnErrorThatSaysSo) {
  const auto whole = small_file().bytes();
  // The padding after the last tensor (20 of 32 bytes) may be missing, nothing else.
  const std::size_t needed = whole.size() - 12;
  for (std::size_t n = 0; n < needed; ++n) {
    const std::vector<std::uint8_t> cut(whole.begin(), whole.begin() + std::ptrdiff_t(n));
    const auto file = parse(cut);
    ASSERT_FALSE(file.ok()) << "cut at " << n;
    EXPECT_THAT(file.error().message, HasSubstr("x.gguf: ")) << "cut at " << n;
  }
  EXPECT_TRUE(parse({whole.begin(), whole.begin() + std::ptrdiff_t(needed)}).ok());
}

TEST(Gguf, ForgedHeadersAreNamed) {
  const auto good = small_file().bytes();
  auto bytes = good;
  bytes[0] = 'X';
  expect_error(bytes, {"magic", "wanted"});
  bytes = good;
  put<std::uint32_t>(bytes, 4, 2);
  expect_error(bytes, {"version: 2 found, 3 wanted"});
  put<std::uint32_t>(bytes, 4, 0x03000000);
  expect_error(bytes, {"version", "big-endian"});
  bytes = good;
  put<std::uint64_t>(bytes, 8, ~std::uint64_t{0});
  expect_error(bytes, {"tensor count", "18446744073709551615"});
  bytes = good;
  put<std::uint64_t>(bytes, 16, std::uint64_t{1} << 62);
  expect_error(bytes, {"metadata count"});
  bytes = good;
  put<std::uint64_t>(bytes, 24, ~std::uint64_t{0});
  expect_error(bytes, {"metadata key 0", "length"});
}

TEST(Gguf, ForgedValuesAreNamed) {
  const auto good = small_file().bytes();
  const std::size_t architecture = find(good, "general.architecture") + 20;
  auto bytes = good;
  put<std::uint32_t>(bytes, architecture, 13);
  expect_error(bytes, {"general.architecture", "value type: 13 found"});
  bytes = good;
  put<std::uint64_t>(bytes, architecture + 4, ~std::uint64_t{7});
  expect_error(bytes, {"general.architecture", "string"});
  const std::size_t tokens = find(good, "tokenizer.ggml.tokens") + 21;
  bytes = good;
  put<std::uint32_t>(bytes, tokens + 4, 9);
  expect_error(bytes, {"tokenizer.ggml.tokens", "array of arrays"});
  bytes = good;
  put<std::uint64_t>(bytes, tokens + 8,
                     std::uint64_t{1} << 61);  // 2^61 strings of 8 bytes overflow 64 bits
  expect_error(bytes, {"tokenizer.ggml.tokens", "count", "2305843009213693952"});
  bytes = good;
  bytes[find(good, "add_bos_token") + 13 + 4] = 2;
  expect_error(bytes, {"add_bos_token", "2 found, 0 or 1 wanted"});
  GgufWriter two;  // which writes no name twice
  two.add_uint32("a.key", 1);
  two.add_uint32("b.key", 2);
  bytes = two.bytes();
  bytes[find(bytes, "b.key")] = 'a';
  expect_error(bytes, {"a.key", "twice"});
}

TEST(Gguf, ForgedTensorsAreNamed) {
  const auto good = small_file().bytes();
  const std::size_t second = find(good, "second.weight") + 13;  // n, 2 dimensions, type, offset
  auto bytes = good;
  put<std::uint32_t>(bytes, second, 5);
  expect_error(bytes, {"second.weight", "dimensions: 5 found"});
  bytes = good;
  put<std::uint64_t>(bytes, second + 4, 0);
  expect_error(bytes, {"second.weight", "0 found"});
  bytes = good;
  put<std::uint64_t>(bytes, second + 4, 33);
  expect_error(bytes, {"second.weight", "33 found", "multiple of 32", "Q8_0"});
  bytes = good;
  put<std::uint64_t>(bytes, second + 12, std::uint64_t{1} << 39);
  expect_error(bytes, {"second.weight", "pass the end"});
  bytes = good;
  put<std::uint64_t>(bytes, second + 4, std::uint64_t{1} << 40);
  put<std::uint64_t>(bytes, second + 12, std::uint64_t{1} << 40);
  expect_error(bytes, {"second.weight", "overflow"});
  bytes = good;
  put<std::uint64_t>(bytes, second + 24, 65);
  expect_error(bytes, {"second.weight", "offset 65", "alignment 32"});
  put<std::uint64_t>(bytes, second + 24, std::uint64_t{1} << 63);
  expect_error(bytes, {"second.weight", "offset"});
  put<std::uint64_t>(bytes, second + 24, 0);  // where the first one lies
  expect_error(bytes, {"first.weight", "second.weight", "overlap"});
  bytes = good;
  put<std::uint32_t>(bytes, second + 20, 99);  // kept, without bytes; refused when it is needed
  auto unknown = parse(bytes);
  ASSERT_TRUE(unknown.ok()) << unknown.error().message;
  EXPECT_TRUE((*unknown)->find("second.weight")->data.empty());
  EXPECT_EQ(ggml_type_name((*unknown)->find("second.weight")->ggml_type), "type 99");
  GgufWriter two;  // which writes no name twice
  two.add_tensor("a.weight", {1}, {1});
  two.add_tensor("b.weight", {1}, {1});
  bytes = two.bytes();
  bytes[find(bytes, "b.weight")] = 'a';
  expect_error(bytes, {"\"a.weight\"", "twice"});
  GgufWriter aligned;
  aligned.add_uint32("general.alignment", 24);
  aligned.add_tensor("t", {1}, {1});
  expect_error(aligned.bytes(), {"general.alignment: 24 found", "power of two"});
}

TEST(Gguf, FlippedBitsNeverCrash) {
  const auto good = small_file().bytes();
  std::mt19937_64 random(17);
  int refused = 0, read = 0;
  for (int i = 0; i < 20'000; ++i) {
    auto bytes = good;
    for (int flips = 1 + int(random() % 4); flips > 0; --flips) {
      const std::size_t at = random() % bytes.size();
      if (random() % 8 == 0 && at + 8 <= bytes.size())
        put<std::uint64_t>(bytes, at, random() >> (random() % 64));
      else
        bytes[at] ^= std::uint8_t(1u << random() % 8);
    }
    const auto file = parse(bytes);
    if (!file) {
      ++refused;
      continue;
    }
    ++read;
    // Everything that is handed out must be readable.
    std::size_t sum = 0;
    for (const std::string& key : (*file)->keys()) {
      sum += (*file)->describe(key).size();
      if (const auto strings = (*file)->get_strings(key))
        for (const std::string_view s : *strings) sum += s.empty() ? 0 : std::size_t(s.back());
      sum += (*file)->get_ints(key).has_value();
    }
    for (const GgufTensor& t : (*file)->tensors())
      if (!t.data.empty()) sum += std::size_t(t.data.front()) + std::size_t(t.data.back());
    EXPECT_GT(sum, 0u);
  }
  EXPECT_GT(refused, 1000);  // both ways must be taken
  EXPECT_GT(read, 1000);
}

TEST(Gguf, BlockSizesOfPublishedTypes) {
  EXPECT_EQ(ggml_block(12)->bytes,
            144);  // Q4_K: 256 weights, 12 bytes of scales, 2 fp16, 128 of codes
  EXPECT_EQ(ggml_block(12)->elements, 256);
  EXPECT_EQ(ggml_block(3)->bytes, 20);
  EXPECT_EQ(ggml_type_name(14), "Q6_K");
  for (const std::uint32_t withdrawn : {4u, 5u, 31u, 36u, 38u, 1000u, ~0u})
    EXPECT_FALSE(ggml_block(withdrawn));
}

}  // namespace
}  // namespace foretoken
