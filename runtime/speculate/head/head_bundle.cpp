#include "runtime/speculate/head/head_bundle.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cassert>

namespace foretoken {
namespace {

Error bad_bundle(const char* reason, std::string text) {
  return Error{ErrorCode::kInvalidInput, fmt::format("{}: bundle: {}", reason, text)};
}

Result<const BundleTensor*> find(const Bundle& bundle, const char* name,
                                 std::initializer_list<TensorType> types,
                                 std::vector<std::int64_t> shape) {
  const auto found = bundle.tensors.find(name);
  if (found == bundle.tensors.end()) return bad_bundle("shape", fmt::format("{} is missing", name));
  const BundleTensor& tensor = found->second;
  if (std::ranges::find(types, tensor.type) == types.end() || tensor.shape != shape ||
      tensor.bytes.size() != tensor_bytes(tensor.type, tensor.shape)) {
    return bad_bundle(
        "shape", fmt::format("{}: found {} [{}], wanted [{}]", name, tensor_type_name(tensor.type),
                             fmt::join(tensor.shape, ", "), fmt::join(shape, ", ")));
  }
  return &tensor;
}

// A tensor's extent before the others are known.
std::int64_t extent_of(const Bundle& bundle, const char* name, std::size_t axis) {
  const auto found = bundle.tensors.find(name);
  return found != bundle.tensors.end() && axis < found->second.shape.size()
             ? found->second.shape[axis]
             : 0;
}

constexpr std::size_t kFusionTensors = 2, kHeadTensors = 11 + kFusionTensors;

const std::string kEagle3Prefix = "eagle3.";
struct CheckpointType {
  SafetensorType in_file;
  TensorType in_bundle;
};
constexpr CheckpointType kCheckpointTypes[] = {{SafetensorType::kF32, TensorType::kF32},
                                               {SafetensorType::kF16, TensorType::kF16},
                                               {SafetensorType::kBF16, TensorType::kBF16},
                                               {SafetensorType::kI64, TensorType::kI64},
                                               {SafetensorType::kBool, TensorType::kBool}};

}  // namespace

Result<HeadParts> head_parts_of(const Bundle& bundle) {
  if (bundle.kind != "head")
    return bad_bundle("kind",
                      fmt::format("found \"{}\", wanted \"head\"", bundle.kind.substr(0, 64)));
  HeadParts parts;
  parts.hidden = extent_of(bundle, "head.fc", 0);
  parts.inner = extent_of(bundle, "head.gate", 0);
  const std::int64_t n_vocab = extent_of(bundle, "head.vocab", 0);
  const std::int64_t hidden = parts.hidden, inner = parts.inner;
  constexpr std::int64_t kMaxHidden = 1 << 16;  // so that no product below overflows
  if (hidden < 32 || hidden > kMaxHidden || inner < 32 || inner > kMaxHeadInner || n_vocab < 16 ||
      n_vocab > kMaxHeadVocab) {
    return bad_bundle(
        "shape", fmt::format("head: hidden {}, inner {}, vocabulary {}", hidden, inner, n_vocab));
  }
  auto vocab = find(bundle, "head.vocab", {TensorType::kI32}, {n_vocab});
  if (!vocab) return vocab.error();
  const auto ids = (*vocab)->i32_values();
  parts.vocab.assign(ids.begin(), ids.end());
  struct Part {
    const char* name;
    std::int64_t n_out, n_in;
    HeadMatrix* to;
  };
  for (const Part& p : {Part{"head.fc", hidden, kHeadTaps * hidden, &parts.fc},
                        Part{"head.step", hidden, 2 * hidden, &parts.step},
                        Part{"head.gate", inner, 2 * hidden, &parts.gate},
                        Part{"head.up", inner, 2 * hidden, &parts.up},
                        Part{"head.down", hidden, inner, &parts.down}}) {
    auto tensor = find(bundle, p.name, {TensorType::kQ8_0, TensorType::kQ4_0}, {p.n_out, p.n_in});
    if (!tensor) return tensor.error();
    p.to->type = (*tensor)->type == TensorType::kQ8_0 ? kernels::WeightType::kQ8_0
                                                      : kernels::WeightType::kQ4_0;
    p.to->rows = (*tensor)->bytes;
  }
  auto gain = find(bundle, "head.gain", {TensorType::kF32}, {1});
  if (!gain) return gain.error();
  auto outside = find(bundle, "head.outside", {TensorType::kF32}, {1});
  if (!outside) return outside.error();
  auto bias = find(bundle, "head.bias", {TensorType::kF32}, {kFusionClasses});
  if (!bias) return bias.error();
  auto source = find(bundle, "head.source", {TensorType::kF32}, {kHeadSources, hidden});
  if (!source) return source.error();
  auto candidate_gain = find(bundle, "head.candidate_gain", {TensorType::kF32}, {kHeadSources});
  if (!candidate_gain) return candidate_gain.error();
  parts.gain = (*gain)->f32_values()[0];
  parts.outside = (*outside)->f32_values()[0];
  std::ranges::copy((*bias)->f32_values(), parts.bias.begin());
  const auto sources = (*source)->f32_values();
  parts.source.assign(sources.begin(), sources.end());
  std::ranges::copy((*candidate_gain)->f32_values(), parts.candidate_gain.begin());
  std::size_t known = kHeadTensors;
  if (bundle.tensors.contains("head.taps")) {
    auto taps = find(bundle, "head.taps", {TensorType::kI32}, {kHeadTaps});
    if (!taps) return taps.error();
    std::ranges::copy((*taps)->i32_values(), parts.taps.emplace().begin());
    ++known;
  }
  if (bundle.tensors.size() != known) {
    return bad_bundle("shape", fmt::format("{} tensors, wanted {}: one is unknown",
                                           bundle.tensors.size(), known));
  }
  return parts;
}

void add_head(Bundle& bundle, const HeadParts& parts) {
  bundle.kind = "head";
  const auto blocks = [](const HeadMatrix& m, std::int64_t n_out, std::int64_t n_in) {
    return BundleTensor::blocks(
        m.type == kernels::WeightType::kQ8_0 ? TensorType::kQ8_0 : TensorType::kQ4_0, {n_out, n_in},
        m.rows);
  };
  auto& t = bundle.tensors;
  const std::int64_t hidden = parts.hidden, inner = parts.inner;
  t["head.vocab"] = BundleTensor::i32({std::int64_t(parts.vocab.size())}, parts.vocab);
  t["head.fc"] = blocks(parts.fc, hidden, kHeadTaps * hidden);
  t["head.step"] = blocks(parts.step, hidden, 2 * hidden);
  t["head.gate"] = blocks(parts.gate, inner, 2 * hidden);
  t["head.up"] = blocks(parts.up, inner, 2 * hidden);
  t["head.down"] = blocks(parts.down, hidden, inner);
  t["head.gain"] = BundleTensor::f32({1}, std::span(&parts.gain, 1));
  t["head.outside"] = BundleTensor::f32({1}, std::span(&parts.outside, 1));
  t["head.bias"] = BundleTensor::f32({kFusionClasses}, parts.bias);
  t["head.source"] = BundleTensor::f32({kHeadSources, hidden}, parts.source);
  t["head.candidate_gain"] = BundleTensor::f32({kHeadSources}, parts.candidate_gain);
  if (parts.taps) t["head.taps"] = BundleTensor::i32({kHeadTaps}, *parts.taps);
}

void add_eagle3(Bundle& bundle, const Eagle3Checkpoint& checkpoint, const HeadTerms& terms) {
  bundle.kind = "eagle3";
  bundle.config = checkpoint.config;
  auto& t = bundle.tensors;
  t["head.outside"] = BundleTensor::f32({1}, std::span(&terms.outside, 1));
  t["head.bias"] = BundleTensor::f32({kFusionClasses}, terms.bias);
  t["head.source"] = BundleTensor::f32(
      {kHeadSources, std::int64_t(terms.source.size()) / kHeadSources}, terms.source);
  for (const auto& [name, tensor] : checkpoint.tensors) {
    const auto type = std::ranges::find(kCheckpointTypes, tensor.type, &CheckpointType::in_file);
    assert(type != std::end(kCheckpointTypes) && "eagle3_parts() takes no other");
    t[kEagle3Prefix + name] = {type->in_bundle, tensor.shape, tensor.bytes};
  }
}

Result<Eagle3Bundle> eagle3_of(const Bundle& bundle) {
  if (bundle.kind != "eagle3")
    return bad_bundle("kind",
                      fmt::format("found \"{}\", wanted \"eagle3\"", bundle.kind.substr(0, 64)));
  Eagle3Bundle out;
  auto outside = find(bundle, "head.outside", {TensorType::kF32}, {1});
  if (!outside) return outside.error();
  auto bias = find(bundle, "head.bias", {TensorType::kF32}, {kFusionClasses});
  if (!bias) return bias.error();
  const std::int64_t width = extent_of(bundle, "head.source", 1);
  auto source = find(bundle, "head.source", {TensorType::kF32}, {kHeadSources, width});
  if (!source) return source.error();
  out.terms.outside = (*outside)->f32_values()[0];
  std::ranges::copy((*bias)->f32_values(), out.terms.bias.begin());
  const auto values = (*source)->f32_values();
  out.terms.source.assign(values.begin(), values.end());
  out.checkpoint.config = bundle.config;
  std::size_t known = 3 + kFusionTensors;
  for (const auto& [name, tensor] : bundle.tensors) {
    if (!name.starts_with(kEagle3Prefix)) continue;
    ++known;
    const auto type = std::ranges::find(kCheckpointTypes, tensor.type, &CheckpointType::in_bundle);
    if (type == std::end(kCheckpointTypes))
      return bad_bundle("dtype", fmt::format("{}: found {}", name, tensor_type_name(tensor.type)));
    out.checkpoint.tensors[name.substr(kEagle3Prefix.size())] = {type->in_file, tensor.shape,
                                                                 tensor.bytes};
  }
  if (bundle.tensors.size() != known) {
    return bad_bundle("shape", fmt::format("{} tensors, wanted {}: one is unknown",
                                           bundle.tensors.size(), known));
  }
  return out;
}

}  // namespace foretoken
