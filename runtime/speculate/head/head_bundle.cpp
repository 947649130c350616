#include "runtime/speculate/head/head_bundle.h"

#include <algorithm>
#include <cassert>

#include "runtime/speculate/fusion_bundle.h"

namespace foretoken {
namespace {

// A tensor's extent before the others are known.
std::int64_t extent_of(const Bundle& bundle, const char* name, std::size_t axis) {
  const auto found = bundle.tensors.find(name);
  return found != bundle.tensors.end() && axis < found->second.shape.size()
             ? found->second.shape[axis]
             : 0;
}

constexpr std::size_t kFusionTensors = 2, kTermTensors = 3;

// How candidates enter the logits, as every kind of head has it.
Result<HeadTerms> terms_of(const Bundle& bundle, std::int64_t width) {
  auto outside = tensor_of(bundle, "head.outside", {TensorType::kF32}, {1});
  if (!outside) return outside.error();
  auto bias = tensor_of(bundle, "head.bias", {TensorType::kF32}, {kFusionClasses});
  if (!bias) return bias.error();
  auto source = tensor_of(bundle, "head.source", {TensorType::kF32}, {kHeadSources, width});
  if (!source) return source.error();
  HeadTerms terms;
  terms.outside = (*outside)->f32_values()[0];
  std::ranges::copy((*bias)->f32_values(), terms.bias.begin());
  const auto values = (*source)->f32_values();
  terms.source.assign(values.begin(), values.end());
  return terms;
}

void add_terms(Bundle& bundle, const HeadTerms& terms) {
  auto& t = bundle.tensors;
  t["head.outside"] = BundleTensor::f32({1}, std::span(&terms.outside, 1));
  t["head.bias"] = BundleTensor::f32({kFusionClasses}, terms.bias);
  t["head.source"] =
      BundleTensor::f32({kHeadSources, std::ssize(terms.source) / kHeadSources}, terms.source);
}

// Of what was read beside the fusion table's.
Status nothing_unknown(const Bundle& bundle, std::size_t n_read) {
  const std::size_t known = n_read + kFusionTensors;
  if (bundle.tensors.size() == known) return Ok{};
  return bad_bundle("shape", "{} tensors, wanted {}: one is unknown", bundle.tensors.size(), known);
}

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
    return bad_bundle("kind", "found \"{}\", wanted \"head\"", bundle.kind.substr(0, 64));
  HeadParts parts;
  parts.hidden = extent_of(bundle, "head.fc", 0);
  parts.inner = extent_of(bundle, "head.gate", 0);
  const std::int64_t n_vocab = extent_of(bundle, "head.vocab", 0);
  const std::int64_t hidden = parts.hidden, inner = parts.inner;
  constexpr std::int64_t kMaxHidden = 1 << 16;  // so that no product below overflows
  if (hidden < 32 || hidden > kMaxHidden || inner < 32 || inner > kMaxHeadInner || n_vocab < 16 ||
      n_vocab > kMaxHeadVocab) {
    return bad_bundle("shape", "head: hidden {}, inner {}, vocabulary {}", hidden, inner, n_vocab);
  }
  auto vocab = tensor_of(bundle, "head.vocab", {TensorType::kI32}, {n_vocab});
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
    auto tensor =
        tensor_of(bundle, p.name, {TensorType::kQ8_0, TensorType::kQ4_0}, {p.n_out, p.n_in});
    if (!tensor) return tensor.error();
    p.to->type = (*tensor)->type == TensorType::kQ8_0 ? kernels::WeightType::kQ8_0
                                                      : kernels::WeightType::kQ4_0;
    p.to->rows = (*tensor)->bytes;
  }
  auto terms = terms_of(bundle, hidden);
  if (!terms) return terms.error();
  static_cast<HeadTerms&>(parts) = std::move(*terms);
  auto gain = tensor_of(bundle, "head.gain", {TensorType::kF32}, {1});
  if (!gain) return gain.error();
  auto candidate_gain =
      tensor_of(bundle, "head.candidate_gain", {TensorType::kF32}, {kHeadSources});
  if (!candidate_gain) return candidate_gain.error();
  parts.gain = (*gain)->f32_values()[0];
  std::ranges::copy((*candidate_gain)->f32_values(), parts.candidate_gain.begin());
  std::size_t n_read = 8 + kTermTensors;
  if (bundle.tensors.contains("head.taps")) {
    auto taps = tensor_of(bundle, "head.taps", {TensorType::kI32}, {kHeadTaps});
    if (!taps) return taps.error();
    std::ranges::copy((*taps)->i32_values(), parts.taps.emplace().begin());
    ++n_read;
  }
  if (auto s = nothing_unknown(bundle, n_read); !s) return s.error();
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
  add_terms(bundle, parts);
  t["head.gain"] = BundleTensor::f32({1}, std::span(&parts.gain, 1));
  t["head.candidate_gain"] = BundleTensor::f32({kHeadSources}, parts.candidate_gain);
  if (parts.taps) t["head.taps"] = BundleTensor::i32({kHeadTaps}, *parts.taps);
}

void add_eagle3(Bundle& bundle, const Eagle3Checkpoint& checkpoint, const HeadTerms& terms) {
  bundle.kind = "eagle3";
  bundle.config = checkpoint.config;
  add_terms(bundle, terms);
  for (const auto& [name, tensor] : checkpoint.tensors) {
    const auto type = std::ranges::find(kCheckpointTypes, tensor.type, &CheckpointType::in_file);
    assert(type != std::end(kCheckpointTypes) && "eagle3_parts() takes no other");
    bundle.tensors[kEagle3Prefix + name] = {type->in_bundle, tensor.shape, tensor.bytes};
  }
}

Result<Eagle3Bundle> eagle3_of(const Bundle& bundle) {
  if (bundle.kind != "eagle3")
    return bad_bundle("kind", "found \"{}\", wanted \"eagle3\"", bundle.kind.substr(0, 64));
  auto terms = terms_of(bundle, extent_of(bundle, "head.source", 1));
  if (!terms) return terms.error();
  Eagle3Bundle out{{bundle.config, {}}, std::move(*terms)};
  std::size_t n_read = kTermTensors;
  for (const auto& [name, tensor] : bundle.tensors) {
    if (!name.starts_with(kEagle3Prefix)) continue;
    ++n_read;
    const auto type = std::ranges::find(kCheckpointTypes, tensor.type, &CheckpointType::in_bundle);
    if (type == std::end(kCheckpointTypes))
      return bad_bundle("dtype", "{}: found {}", name, tensor_type_name(tensor.type));
    out.checkpoint.tensors[name.substr(kEagle3Prefix.size())] = {type->in_file, tensor.shape,
                                                                 tensor.bytes};
  }
  if (auto s = nothing_unknown(bundle, n_read); !s) return s.error();
  return out;
}

}  // namespace foretoken
