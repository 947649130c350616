// ggml's published tensor types: name, values a block, bytes a block.
#include <fmt/format.h>

#include <array>

#include "runtime/model/gguf.h"

namespace foretoken {
namespace {

struct TypeRow {
  const char* name;
  GgmlBlock block;
};

// Indexed by ggml's type number. The gaps are numbers that were withdrawn (Q4_2, Q4_3 and the
// layouts that were repacked in the file) and no file may use any more.
constexpr std::array<TypeRow, 42> kTypes = {{
    {"F32", {1, 4}},        {"F16", {1, 2}},       {"Q4_0", {32, 18}},     {"Q4_1", {32, 20}},
    {nullptr, {}},          {nullptr, {}},         {"Q5_0", {32, 22}},     {"Q5_1", {32, 24}},
    {"Q8_0", {32, 34}},     {"Q8_1", {32, 40}},    {"Q2_K", {256, 84}},    {"Q3_K", {256, 110}},
    {"Q4_K", {256, 144}},   {"Q5_K", {256, 176}},  {"Q6_K", {256, 210}},   {"Q8_K", {256, 292}},
    {"IQ2_XXS", {256, 66}}, {"IQ2_XS", {256, 74}}, {"IQ3_XXS", {256, 98}}, {"IQ1_S", {256, 50}},
    {"IQ4_NL", {32, 18}},   {"IQ3_S", {256, 110}}, {"IQ2_S", {256, 82}},   {"IQ4_XS", {256, 136}},
    {"I8", {1, 1}},         {"I16", {1, 2}},       {"I32", {1, 4}},        {"I64", {1, 8}},
    {"F64", {1, 8}},        {"IQ1_M", {256, 56}},  {"BF16", {1, 2}},       {nullptr, {}},
    {nullptr, {}},          {nullptr, {}},         {"TQ1_0", {256, 54}},   {"TQ2_0", {256, 66}},
    {nullptr, {}},          {nullptr, {}},         {nullptr, {}},          {"MXFP4", {32, 17}},
    {"NVFP4", {64, 36}},    {"Q1_0", {128, 18}},
}};

const TypeRow* row_of(std::uint32_t ggml_type) {
  if (ggml_type >= kTypes.size() || kTypes[ggml_type].name == nullptr) return nullptr;
  return &kTypes[ggml_type];
}

}  // namespace

std::string ggml_type_name(std::uint32_t ggml_type) {
  const TypeRow* row = row_of(ggml_type);
  return row ? row->name : fmt::format("type {}", ggml_type);
}

std::optional<GgmlBlock> ggml_block(std::uint32_t ggml_type) {
  const TypeRow* row = row_of(ggml_type);
  return row ? std::optional(row->block) : std::nullopt;
}

}  // namespace foretoken
