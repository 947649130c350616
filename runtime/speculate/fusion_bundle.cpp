#include "runtime/speculate/fusion_bundle.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "runtime/speculate/head/registry.h"

namespace foretoken {

Result<const BundleTensor*> tensor_of(const Bundle& bundle, const char* name,
                                      std::initializer_list<TensorType> types,
                                      const std::vector<std::int64_t>& shape) {
  const auto found = bundle.tensors.find(name);
  if (found == bundle.tensors.end()) return bad_bundle("shape", "{} is missing", name);
  const BundleTensor& tensor = found->second;
  if (std::ranges::find(types, tensor.type) == types.end() || tensor.shape != shape ||
      tensor.bytes.size() != tensor_bytes(tensor.type, tensor.shape)) {
    std::string wanted;
    for (const TensorType type : types)
      wanted += (wanted.empty() ? "" : " or ") + std::string(tensor_type_name(type));
    return bad_bundle("shape", "{}: found {} [{}], wanted {} [{}]", name,
                      tensor_type_name(tensor.type), fmt::join(tensor.shape, ", "), wanted,
                      fmt::join(shape, ", "));
  }
  return &tensor;
}

Result<FusionTable> fusion_table_of(const Bundle& bundle) {
  if (bundle.kind != "fusion" && !find_head(bundle.kind))
    return bad_bundle("kind", "found \"{}\", wanted \"fusion\" or {}", bundle.kind.substr(0, 64),
                      head_kinds());
  auto bias = tensor_of(bundle, "fusion.bias", {TensorType::kF32}, {kFusionClasses});
  if (!bias) return bias.error();
  auto other = tensor_of(bundle, "fusion.other", {TensorType::kF32}, {1});
  if (!other) return other.error();
  FusionTable table;
  std::ranges::copy((*bias)->f32_values(), table.bias.begin());
  table.other = (*other)->f32_values()[0];
  if (!table.finite()) return bad_bundle("non-finite", "fusion table");
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
