#include "runtime/speculate/fusion_bundle.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "runtime/speculate/head/registry.h"

namespace foretoken {
namespace {

Error bad_fusion(const char* reason, std::string text) {
  return Error{ErrorCode::kInvalidInput, fmt::format("{}: bundle: {}", reason, text)};
}

Result<const BundleTensor*> tensor_of(const Bundle& bundle, const char* name, std::int64_t extent) {
  const auto found = bundle.tensors.find(name);
  if (found == bundle.tensors.end()) return bad_fusion("shape", fmt::format("{} is missing", name));
  const BundleTensor& tensor = found->second;
  if (tensor.type != TensorType::kF32 || tensor.shape != std::vector<std::int64_t>{extent} ||
      tensor.f32_values().size() != std::size_t(extent)) {
    return bad_fusion(
        "shape", fmt::format("{}: found {} [{}], wanted f32 [{}]", name,
                             tensor_type_name(tensor.type), fmt::join(tensor.shape, ", "), extent));
  }
  return &tensor;
}

}  // namespace

Result<FusionTable> fusion_table_of(const Bundle& bundle) {
  if (bundle.kind != "fusion" && !find_head(bundle.kind))
    return bad_fusion("kind", fmt::format("found \"{}\", wanted \"fusion\" or {}",
                                          bundle.kind.substr(0, 64), head_kinds()));
  auto bias = tensor_of(bundle, "fusion.bias", kFusionClasses);
  if (!bias) return bias.error();
  auto other = tensor_of(bundle, "fusion.other", 1);
  if (!other) return other.error();
  FusionTable table;
  std::ranges::copy((*bias)->f32_values(), table.bias.begin());
  table.other = (*other)->f32_values()[0];
  if (!table.finite()) return bad_fusion("non-finite", "fusion table");
  return table;
}

Bundle bundle_of(const FusionTable& table) {
  Bundle bundle;
  bundle.kind = "fusion";
  bundle.tensors["fusion.bias"] = BundleTensor::f32({kFusionClasses}, table.bias);
  bundle.tensors["fusion.other"] = BundleTensor::f32({1}, std::span(&table.other, 1));
  return bundle;
}

}  // namespace foretoken
