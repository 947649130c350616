#include "runtime/kv/calibration_transforms.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace foretoken {

const kernels::KvFormat& KvTransforms::format(KvTransformKind kind) {
  for (const kernels::KvFormat& f : kernels::kKvFormats) {
    if (f.transform == kind && f.bits > 0) return f;
  }
  return kernels::kKvFormats[0];
}

KvTransforms::Extents KvTransforms::extents(KvTransformKind kind, int head_dim) {
  const auto d = std::size_t(head_dim);
  const auto k = std::size_t(kernels::k_digits(format(kind), head_dim));
  const auto v = std::size_t(kernels::v_digits(format(kind), head_dim));
  switch (kind) {
    case KvTransformKind::kIdentity:
      return {};
    case KvTransformKind::kHadamard:
      return {.k_encode = d * d, .k_query = d * d};
    case KvTransformKind::kRotation:
      return {.k_encode = d * d, .k_query = d * d, .v_encode = d * d, .v_decode = d * d};
    case KvTransformKind::kPaired:
    case KvTransformKind::kPairedClasses2:
    case KvTransformKind::kPairedClasses4:
      return {.k_encode = d * d,
              .k_query = d * k,
              .v_encode = d * d,
              .v_decode = v * d,
              .vectors = 3 * d};
  }
  return {};
}

KvTransforms::KvTransforms(const KvGeometry& geometry, KvTransformKind kind, bool shared)
    : geometry_(geometry), kind_(kind), shared_(shared) {
  const Extents e = extents(kind, geometry.head_dim);
  const std::size_t d = geometry.head_dim;
  per_head_ = e.total();
  floats_.resize(shared ? per_head_ : per_head_ * n_transforms());
  views_.resize(n_transforms());
  for (int i = 0; i < n_transforms(); ++i) {
    const float* next = floats(i);
    const auto take = [&](std::size_t n) {
      const float* at = n > 0 ? next : nullptr;
      next += n;
      return at;
    };
    kernels::KvTransform& view = views_[i];
    view.k_encode = take(e.k_encode);
    view.k_query = take(e.k_query);
    view.v_encode = take(e.v_encode);
    view.v_decode = take(e.v_decode);
    if (e.vectors > 0) {
      view.k_weight = take(d);
      view.v_weight = take(d);
      view.v_mean = take(d);
    }
  }
}

double hartley(int n, int i, int j) {
  const double angle = 2 * M_PI * double((std::int64_t(i) * j) % n) / n;
  return (std::cos(angle) + std::sin(angle)) / std::sqrt(double(n));
}

namespace {

// Every head the same: channels through an orthogonal symmetric matrix (or none), one step for all.
// Where K has more digits than channels the first ones have two, and where V has fewer the last
// ones are left out: without data no channel is known to matter more.
std::shared_ptr<const KvTransforms> uniform(const KvGeometry& geometry, KvTransformKind kind,
                                            bool rotate, bool page_mean, bool max_scale) {
  auto transforms = std::make_shared<KvTransforms>(geometry, kind, true);
  const int d = geometry.head_dim;
  const kernels::KvFormat& format = KvTransforms::format(kind);
  const int k_n = kernels::k_digits(format, d), v_n = kernels::v_digits(format, d);
  const int k_high = k_n - d;  // so many channels of two digits
  float* at = transforms->floats(0);
  float *k_encode = at, *k_query = k_encode + d * d, *v_encode = k_query + d * k_n,
        *v_decode = v_encode + d * d, *weights = v_decode + v_n * d;
  const auto element = [&](int i, int j) { return float(rotate ? hartley(d, i, j) : i == j); };
  const auto levels = float(1 << format.bits);
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) k_encode[i * d + j] = v_encode[i * d + j] = element(i, j);
    for (int digit = 0; digit < k_n; ++digit) {
      const int channel = digit < k_high ? digit : digit - k_high;
      k_query[i * k_n + digit] = element(i, channel) * (digit < k_high ? levels : 1.0f);
    }
    for (int digit = 0; digit < v_n; ++digit) v_decode[digit * d + i] = element(digit, i);
    weights[i] = weights[d + i] = 1;
  }
  for (int n = 0; n < transforms->n_transforms(); ++n) {
    transforms->at(n).k_n4 = k_high;
    transforms->at(n).k_page_mean = page_mean;
    transforms->at(n).max_scale = max_scale;
  }
  return transforms;
}

// Sylvester's matrix in blocks: of K, and of V where the kind has a transform of it. Blocks of the
// largest power of two that divides d, at most 128 (SAW-INT4's own choice): 64, 16 at d = 80, 32 at
// 96, 128, twice 128 at 256.
std::shared_ptr<const KvTransforms> hadamard_blocks(const KvGeometry& geometry,
                                                    KvTransformKind kind) {
  auto transforms = std::make_shared<KvTransforms>(geometry, kind, true);
  const int d = geometry.head_dim, block = std::min(d & -d, 128);
  const std::size_t n_matrices = KvTransforms::extents(kind, d).total() / d / d;
  float* at = transforms->floats(0);
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) {
      const double x = i / block != j / block
                           ? 0
                           : (__builtin_parity(i % block & j % block) ? -1 : 1) / std::sqrt(block);
      for (std::size_t m = 0; m < n_matrices; ++m) at[(m * d + i) * d + j] = float(x);
    }
  }
  return transforms;
}

std::size_t index_of(KvTransformKind kind) { return std::size_t(kind); }

}  // namespace

KvCalibration::KvCalibration(const KvGeometry& geometry) {
  add(std::make_shared<KvTransforms>(geometry, KvTransformKind::kIdentity, true));
  add(hadamard_blocks(geometry, KvTransformKind::kHadamard));
}

void KvCalibration::add(std::shared_ptr<const KvTransforms> transforms) {
  const std::size_t kind = index_of(transforms->kind());
  by_kind_[kind] = std::move(transforms);
}

bool KvCalibration::covers(KvMode mode) const {
  return by_kind_[index_of(kernels::kv_format(mode).transform)] != nullptr;
}

const kernels::KvTransform* KvCalibration::layer(KvMode mode, int layer) const {
  const auto& transforms = by_kind_[index_of(kernels::kv_format(mode).transform)];
  return transforms == nullptr ? nullptr : transforms->layer(layer);
}

std::shared_ptr<const KvCalibration> KvCalibration::data_free(const KvGeometry& geometry) {
  auto calibration = std::make_shared<KvCalibration>(geometry);
  for (const auto kind : {KvTransformKind::kPaired, KvTransformKind::kPairedClasses2,
                          KvTransformKind::kPairedClasses4})
    calibration->add(uniform(geometry, kind, true, true, false));
  calibration->add(hadamard_blocks(geometry, KvTransformKind::kRotation));  // OSCAR's own fallback
  return calibration;
}
std::shared_ptr<const KvCalibration> KvCalibration::naive(const KvGeometry& geometry) {
  auto calibration = std::make_shared<KvCalibration>(geometry);
  calibration->add(uniform(geometry, KvTransformKind::kPairedClasses2, false, false, true));
  return calibration;
}
std::shared_ptr<const KvCalibration> KvCalibration::hadamard(const KvGeometry& geometry) {
  auto calibration = std::make_shared<KvCalibration>(geometry);
  calibration->add(uniform(geometry, KvTransformKind::kPairedClasses2, true, false, false));
  return calibration;
}

}  // namespace foretoken
