#include "runtime/kv/calibration_transforms.h"

#include <cmath>
#include <memory>

namespace foretoken {

KvTransforms::KvTransforms(const KvGeometry& geometry) : geometry_(geometry) {
  const std::size_t d = geometry.head_dim, square = d * d;
  floats_.resize(floats_per_head(geometry.head_dim) * n_transforms());
  views_.resize(n_transforms());
  for (int i = 0; i < n_transforms(); ++i) {
    const float* at = floats(i);
    views_[i] = {.k_encode = at,
                 .k_query = at + square,
                 .k_weight = at + 4 * square,
                 .v_encode = at + 2 * square,
                 .v_decode = at + 3 * square,
                 .v_weight = at + 4 * square + d,
                 .v_mean = at + 4 * square + 2 * d};
  }
}

const kernels::Int2Transform* KvTransforms::layer(int layer) const {
  return views_.data() + static_cast<std::size_t>(layer) * geometry_.n_kv_heads;
}

namespace {

// Every head the same: channels through an orthogonal symmetric matrix (or none), one step for all.
std::shared_ptr<KvTransforms> uniform(const KvGeometry& geometry, bool rotate, bool page_mean,
                                      bool max_scale) {
  auto transforms = std::make_shared<KvTransforms>(geometry);
  const int d = geometry.head_dim;
  const double step = 1;  // the row's scale finds the size
  for (int n = 0; n < transforms->n_transforms(); ++n) {
    float* at = transforms->floats(n);
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        const double angle = 2 * M_PI * ((static_cast<std::int64_t>(i) * j) % d) / d;
        const double x = rotate ? (std::cos(angle) + std::sin(angle)) / std::sqrt(d) : i == j;
        for (int m = 0; m < 4; ++m)
          at[(static_cast<std::size_t>(m) * d + i) * d + j] = static_cast<float>(x * step);
      }
      at[4 * d * d + i] = at[4 * d * d + d + i] = 1;
    }
    transforms->at(n).k_page_mean = page_mean;
    transforms->at(n).max_scale = max_scale;
  }
  return transforms;
}

}  // namespace

std::shared_ptr<const KvCalibration> KvCalibration::data_free(const KvGeometry& geometry) {
  return uniform(geometry, true, true, false);
}
std::shared_ptr<const KvCalibration> KvCalibration::naive(const KvGeometry& geometry) {
  return uniform(geometry, false, false, true);
}
std::shared_ptr<const KvCalibration> KvCalibration::hadamard(const KvGeometry& geometry) {
  return uniform(geometry, true, false, false);
}

}  // namespace foretoken
