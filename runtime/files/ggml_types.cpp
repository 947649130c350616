// ggml's published tensor types: name, values a block, bytes a block. Those that the kernels
// multiply with are rows of kernels/weight_type.h; here are the others, which a file may hold all
// the same.
#include <fmt/format.h>

#include "foretoken/kernels/weight_type.h"
#include "runtime/files/gguf.h"

namespace foretoken {
namespace {

struct TypeRow {
  std::uint32_t ggml_type;
  const char* name;
  GgmlBlock block;
};
// The gaps are numbers that were withdrawn (Q4_2, Q4_3 and the layouts that were repacked in the
// file) and no file may use any more.
constexpr TypeRow kOtherTypes[] = {
    {9, "Q8_1", {32, 40}},     {15, "Q8_K", {256, 292}},   {16, "IQ2_XXS", {256, 66}},
    {17, "IQ2_XS", {256, 74}}, {18, "IQ3_XXS", {256, 98}}, {19, "IQ1_S", {256, 50}},
    {21, "IQ3_S", {256, 110}}, {22, "IQ2_S", {256, 82}},   {23, "IQ4_XS", {256, 136}},
    {24, "I8", {1, 1}},        {25, "I16", {1, 2}},        {26, "I32", {1, 4}},
    {27, "I64", {1, 8}},       {28, "F64", {1, 8}},        {29, "IQ1_M", {256, 56}},
    {34, "TQ1_0", {256, 54}},  {35, "TQ2_0", {256, 66}},   {39, "MXFP4", {32, 17}},
    {40, "NVFP4", {64, 36}},   {41, "Q1_0", {128, 18}},
};

std::optional<TypeRow> row_of(std::uint32_t ggml_type) {
  if (const auto type = kernels::weight_type_of_ggml(ggml_type)) {
    const kernels::WeightFormat& format = kernels::weight_format(*type);
    return TypeRow{ggml_type, format.name, {format.block_values, format.block_bytes}};
  }
  for (const TypeRow& row : kOtherTypes)
    if (row.ggml_type == ggml_type) return row;
  return std::nullopt;
}

}  // namespace

std::string ggml_type_name(std::uint32_t ggml_type) {
  const auto row = row_of(ggml_type);
  return row ? row->name : fmt::format("type {}", ggml_type);
}

std::optional<GgmlBlock> ggml_block(std::uint32_t ggml_type) {
  const auto row = row_of(ggml_type);
  return row ? std::optional(row->block) : std::nullopt;
}

}  // namespace foretoken
