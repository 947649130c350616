// The types of weights, one row each. A type is its row and its file, kernels/cpu/types/NAME.h in
// lower case: a struct of the row's name that says what a file's block means, how sixteen outputs
// of it are packed, and how a tile of rows is multiplied with it (kernels/cpu/weight_blocks.h lists
// what is asked of it). Loading, packing, every instruction set's kernels, the model readers and
// the tests that run over all types take it up from here. Read-only, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>

namespace foretoken::kernels {

// What a type's weights are multiplied with: floats, or int8 quantised by row in blocks of values.
enum class ActivationForm : std::uint8_t { kFloat, kBlocks32, kBlocks256 };

// clang-format off
// name, its number in GGUF (-1: none), its name in safetensors ("": none), values and bytes of a
// block of the file, activations
#define FORETOKEN_WEIGHT_TYPES(row)             \
  row(F32,     0, "F32",    1,   4, kFloat)     \
  row(F16,     1, "F16",    1,   2, kFloat)     \
  row(BF16,   30, "BF16",   1,   2, kFloat)     \
  row(Q8_0,    8, "",      32,  34, kBlocks32)  \
  row(Q4_0,    2, "",      32,  18, kBlocks32)  \
  row(Q4_1,    3, "",      32,  20, kBlocks32)  \
  row(Q5_0,    6, "",      32,  22, kBlocks32)  \
  row(Q5_1,    7, "",      32,  24, kBlocks32)  \
  row(IQ4_NL, 20, "",      32,  18, kBlocks32)  \
  row(Q2_K,   10, "",     256,  84, kBlocks256) \
  row(Q3_K,   11, "",     256, 110, kBlocks256) \
  row(Q4_K,   12, "",     256, 144, kBlocks256) \
  row(Q5_K,   13, "",     256, 176, kBlocks256) \
  row(Q6_K,   14, "",     256, 210, kBlocks256)
// clang-format on

enum class WeightType : std::uint8_t {
#define FORETOKEN_ROW(name, ...) k##name,
  FORETOKEN_WEIGHT_TYPES(FORETOKEN_ROW)
#undef FORETOKEN_ROW
};

struct WeightFormat {
  WeightType type;
  const char* name;  // "Q4_K"
  int ggml_type;
  std::string_view safetensors;
  int block_values, block_bytes;
  ActivationForm activations;
};
inline constexpr WeightFormat kWeightFormats[] = {
#define FORETOKEN_ROW(name, id, safetensors, values, bytes, form) \
  {WeightType::k##name, #name, id, safetensors, values, bytes, ActivationForm::form},
    FORETOKEN_WEIGHT_TYPES(FORETOKEN_ROW)
#undef FORETOKEN_ROW
};
inline constexpr int kWeightTypes = static_cast<int>(std::size(kWeightFormats));

constexpr const WeightFormat& weight_format(WeightType type) {
  return kWeightFormats[static_cast<int>(type)];
}
constexpr const char* weight_type_name(WeightType type) { return weight_format(type).name; }
// Values a block: a row's n_in must be a multiple.
constexpr int weight_block_values(WeightType type) { return weight_format(type).block_values; }
// Of a row in the *file's* format.
constexpr std::size_t weight_row_bytes(WeightType type, std::int64_t n_in) {
  return static_cast<std::size_t>(n_in / weight_block_values(type)) *
         static_cast<std::size_t>(weight_format(type).block_bytes);
}
constexpr bool wants_block32(WeightType type) {
  return weight_format(type).activations == ActivationForm::kBlocks32;
}
constexpr bool wants_block256(WeightType type) {
  return weight_format(type).activations == ActivationForm::kBlocks256;
}

// None where there is no such type.
std::optional<WeightType> weight_type_of_ggml(std::uint32_t ggml_type);
std::optional<WeightType> weight_type_of_safetensors(std::string_view name);

}  // namespace foretoken::kernels
