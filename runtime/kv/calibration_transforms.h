// The transforms of every (layer, KV head) of one kind, in one block of floats, with the views the
// kernels take. Private.
#pragma once

#include <vector>

#include "runtime/kv/calibration.h"
#include "runtime/kv/kv_pages.h"

namespace foretoken {

using KvTransformKind = kernels::KvTransformKind;

double hartley(int n, int i, int j);  // of the Hartley matrix: orthogonal, symmetric, [n, n]

// Matrices are [in, out], row-major, as kernels/kv_page.h describes them. What a kind does not have
// is null in its views.
class KvTransforms {
 public:
  // shared: one head's floats serve all of them.
  KvTransforms(const KvGeometry& geometry, KvTransformKind kind, bool shared);
  KvTransforms(const KvTransforms&) = delete;
  KvTransforms& operator=(const KvTransforms&) = delete;

  // In the order k_encode, k_query, v_encode, v_decode; k_weight, v_weight, v_mean [d].
  struct Extents {
    std::size_t k_encode = 0, k_query = 0, v_encode = 0, v_decode = 0, vectors = 0;
    std::size_t total() const { return k_encode + k_query + v_encode + v_decode + vectors; }
  };
  static Extents extents(KvTransformKind kind, int head_dim);
  static const kernels::KvFormat& format(KvTransformKind kind);  // a mode of this kind

  const KvGeometry& geometry() const { return geometry_; }
  KvTransformKind kind() const { return kind_; }
  bool shared() const { return shared_; }
  int n_transforms() const { return geometry_.n_layers * geometry_.n_kv_heads; }
  kernels::KvTransform& at(int index) { return views_[index]; }
  const kernels::KvTransform& at(int index) const { return views_[index]; }
  float* floats(int index) { return floats_.data() + (shared_ ? 0 : index * per_head_); }
  const float* floats(int index) const {
    return floats_.data() + (shared_ ? 0 : index * per_head_);
  }
  const kernels::KvTransform* layer(int layer) const {
    return views_.data() + std::size_t(layer) * geometry_.n_kv_heads;
  }

 private:
  KvGeometry geometry_;
  KvTransformKind kind_;
  bool shared_;
  std::size_t per_head_;
  std::vector<float> floats_;
  std::vector<kernels::KvTransform> views_;
};

}  // namespace foretoken
