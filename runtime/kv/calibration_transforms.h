// The transforms of every (layer, KV head) in one block of floats, with the views the kernels take.
// Private.
#pragma once

#include "runtime/kv/calibration.h"
#include "runtime/kv/kv_cache.h"

namespace foretoken {

// Matrices are [in, out], row-major, as kernels/kv_page.h describes them.
class KvTransforms final : public KvCalibration {
 public:
  explicit KvTransforms(const KvGeometry& geometry);
  const kernels::Int2Transform* layer(int layer) const override;
  Status save(const std::string& path,
              const std::array<std::uint8_t, 32>& fingerprint) const override;

  static std::size_t floats_per_head(int d) {
    return 4 * static_cast<std::size_t>(d) * d + 3 * static_cast<std::size_t>(d);
  }
  const KvGeometry& geometry() const { return geometry_; }
  int n_transforms() const { return geometry_.n_layers * geometry_.n_kv_heads; }
  kernels::Int2Transform& at(int index) { return views_[index]; }
  const kernels::Int2Transform& at(int index) const { return views_[index]; }
  // In the order k_encode, k_query, v_encode, v_decode [d, d]; k_weight, v_weight, v_mean [d].
  float* floats(int index) { return floats_.data() + index * floats_per_head(geometry_.head_dim); }
  const float* floats(int index) const {
    return floats_.data() + index * floats_per_head(geometry_.head_dim);
  }

 private:
  KvGeometry geometry_;
  std::vector<float> floats_;
  std::vector<kernels::Int2Transform> views_;
};

}  // namespace foretoken
