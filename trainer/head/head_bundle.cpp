#include "trainer/head/head_bundle.h"

namespace foretoken::trainer {

void add_head(HeadParts parts, Bundle& bundle) {
  const auto matrix = [&](const char* name, HeadMatrix& m, std::int64_t n_out, std::int64_t n_in) {
    const TensorType type =
        m.type == kernels::WeightType::kQ4_0 ? TensorType::kQ4_0 : TensorType::kQ8_0;
    bundle.tensors[name] = BundleTensor::blocks(type, {n_out, n_in}, std::move(m.rows));
  };
  const std::int64_t h = parts.hidden, i = parts.inner;
  bundle.kind = "head";
  bundle.tensors["head.vocab"] = BundleTensor::i32({std::int64_t(parts.vocab.size())}, parts.vocab);
  matrix("head.fc", parts.fc, h, kHeadTaps * h);
  matrix("head.step", parts.step, h, 2 * h);
  matrix("head.gate", parts.gate, i, 2 * h);
  matrix("head.up", parts.up, i, 2 * h);
  matrix("head.down", parts.down, h, i);
  bundle.tensors["head.gain"] = BundleTensor::f32({1}, {&parts.gain, 1});
  bundle.tensors["head.outside"] = BundleTensor::f32({1}, {&parts.outside, 1});
  bundle.tensors["head.bias"] = BundleTensor::f32({kFusionClasses}, parts.bias);
  bundle.tensors["head.source"] = BundleTensor::f32({kHeadSources, h}, parts.source);
}

Result<HeadParts> head_of(const Bundle& bundle) {
  HeadParts parts;
  std::string missing;
  const auto find = [&](const char* name) -> const BundleTensor& {
    static const BundleTensor kNone;
    const auto found = bundle.tensors.find(name);
    if (found == bundle.tensors.end() || found->second.shape.empty()) {
      missing = name;
      return kNone;
    }
    return found->second;
  };
  const auto matrix = [&](const char* name) {
    const BundleTensor& tensor = find(name);
    HeadMatrix m;
    m.type =
        tensor.type == TensorType::kQ4_0 ? kernels::WeightType::kQ4_0 : kernels::WeightType::kQ8_0;
    m.rows = tensor.bytes;
    return m;
  };
  const auto one = [&](const char* name) {
    const auto values = find(name).f32_values();
    if (values.size() == 1) return values[0];
    missing = name;
    return 0.0f;
  };
  parts.fc = matrix("head.fc");
  parts.step = matrix("head.step");
  parts.gate = matrix("head.gate");
  parts.up = matrix("head.up");
  parts.down = matrix("head.down");
  parts.gain = one("head.gain");
  parts.outside = one("head.outside");
  const auto vocab = find("head.vocab").i32_values();
  parts.vocab.assign(vocab.begin(), vocab.end());
  const auto source = find("head.source").f32_values();
  parts.source.assign(source.begin(), source.end());
  const auto bias = find("head.bias").f32_values();
  if (bias.size() == parts.bias.size()) {
    std::copy(bias.begin(), bias.end(), parts.bias.begin());
  } else {
    missing = "head.bias";
  }
  if (!missing.empty()) {
    return Error{ErrorCode::kInvalidInput,
                 "shape: bundle: " + missing + " is missing or has another shape"};
  }
  parts.hidden = find("head.down").shape[0];
  parts.inner = find("head.down").shape.back();
  return parts;
}

}  // namespace foretoken::trainer
