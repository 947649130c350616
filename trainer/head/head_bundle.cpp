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

}  // namespace foretoken::trainer
