// Second moments from a forward pass, and the transforms they give: calibration.h has the method.
#include <Eigen/Dense>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/kv/calibration_transforms.h"

namespace foretoken {
namespace {

using kernels::kPageTokens;
using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;
using FloatRows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using StridedRows = Eigen::Map<const FloatRows, 0, Eigen::OuterStride<>>;

// Of the mean variance: keeps directions that the text never used from being scaled without bound.
constexpr double kRidge = 1e-3;
// Queries a window and head whose attention weights are computed in full, for the head's energy.
constexpr int kEnergyRows = 16;
// Steps and errors of uniform quantisers of 4 and 16 levels on a unit Gaussian (Max 1960); no bits:
// error 1.
constexpr double kStep2 = 0.9957, kStep4 = 0.3352, kError2 = 0.1188, kError4 = 0.01154, kError0 = 1;
constexpr int kSixteenths[] = {0, 1, 2, 3, 4, 6};  // candidates for n4, in d/16

struct HeadMoments {
  Matrix query, key, value;  // sums of outer products
  Matrix weighted_value;     // the same of values, weighted as OSCAR does
  Vector value_sum;
  double n_query = 0, n_key = 0, n_value = 0;
};

void add_outer_products(const FloatRows& rows, Matrix& sum) {
  sum += (rows.transpose() * rows).cast<double>();
}

struct Roots {
  Matrix half, inverse_half;
};
Roots roots(const Matrix& symmetric) {
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(symmetric);
  const double floor = std::max(solver.eigenvalues().maxCoeff() * 1e-12, 1e-30);
  const Vector values = solver.eigenvalues().cwiseMax(floor);
  const Matrix& u = solver.eigenvectors();
  return {u * values.cwiseSqrt().asDiagonal() * u.transpose(),
          u * values.cwiseSqrt().cwiseInverse().asDiagonal() * u.transpose()};
}

void add_ridge(Matrix& m) {
  m = (0.5 * (m + m.transpose())).eval();
  const double mean = m.trace() / static_cast<double>(m.rows());
  m.diagonal().array() += kRidge * mean + 1e-12;
}

// One side (keys or values) of one head, as the paired transform leaves it: k' = (k half) basis, in
// the eigenbasis of the moment that both have in common, largest first.
struct PairedBasis {
  Matrix half, inverse_half, basis;
  Vector values;  // descending
};

PairedBasis paired_basis(Matrix importance, Matrix energy) {
  add_ridge(importance);
  add_ridge(energy);
  const Roots e = roots(energy);
  const Matrix m = e.inverse_half * roots(e.half * importance * e.half).half * e.inverse_half;
  const Roots r = roots(0.5 * (m + m.transpose()));
  const Matrix c = r.half * energy * r.half;
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(0.5 * (c + c.transpose()));
  return {r.half, r.inverse_half, solver.eigenvectors().rowwise().reverse(),
          solver.eigenvalues().reverse().cwiseMax(0)};
}

// The transform of one side.
struct Side {
  Matrix encode;  // [in, channel], in units of the step
  Matrix decode;  // [channel, in]: channels back to the vector, per step
  Vector step;    // [channel]
  int n4 = 0;     // channels of two digits
};

// Channels in up to three classes: two digits, one, none; n_digits in all. Without classes all
// channels have one digit of `flat_step` deviations.
Side with_classes(const PairedBasis& paired, int n_digits, bool classes) {
  const int d = static_cast<int>(paired.values.size());
  Matrix basis = paired.basis;
  // Rotated inside a class, every channel has the class's mean energy and its mean importance.
  const auto mean = [&](int first, int n) {
    return n > 0 ? paired.values.segment(first, n).mean() : 0.0;
  };
  Side side;
  int n0 = 0;
  double least = -1;
  for (const int sixteenths : kSixteenths) {
    const int n4 = classes ? sixteenths * d / 16 : 0, none = n4 + d - n_digits;
    if (none < 0 || n4 + none > d) continue;
    const int n2 = d - n4 - none;
    const double loss = kError4 * n4 * std::pow(mean(0, n4), 2) +
                        kError2 * n2 * std::pow(mean(n4, n2), 2) +
                        kError0 * paired.values.tail(none).squaredNorm();
    if (least < 0 || loss < least) least = loss, side.n4 = n4, n0 = none;
  }

  const int first[] = {0, side.n4, d - n0}, size[] = {side.n4, d - side.n4 - n0, n0};
  side.step = Vector::Ones(d);
  for (int k = 0; k < 3; ++k) {
    const int n = size[k];
    if (n == 0) continue;
    Matrix hartley(n, n);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        const double angle = 2 * M_PI * ((i * j) % n) / n;
        hartley(i, j) = (std::cos(angle) + std::sin(angle)) / std::sqrt(static_cast<double>(n));
      }
    }
    basis.middleCols(first[k], n) = (basis.middleCols(first[k], n) * hartley).eval();
    const double deviation = std::sqrt(std::max(mean(first[k], n), 1e-20));
    side.step.segment(first[k], n).setConstant(deviation * (k == 0 || !classes ? kStep4 : kStep2));
  }
  side.encode = paired.half * basis * side.step.cwiseInverse().asDiagonal();
  side.decode = side.step.asDiagonal() * basis.transpose() * paired.inverse_half;
  return side;
}

// OSCAR: the eigenbasis of a moment, spread by a Hadamard matrix; where d is no power of two, by
// one of its largest power of two in blocks, the i-th direction in block i mod n_blocks, so that
// all blocks have the same mix. [in, channel].
Matrix oscar_rotation(const Matrix& moment) {
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(0.5 * (moment + moment.transpose()));
  const int d = static_cast<int>(moment.rows()), block = d & -d, n_blocks = d / block;
  Matrix spread = Matrix::Zero(d, d);
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < block; ++j) {
      spread(i, i % n_blocks * block + j) =
          (__builtin_parity(i / n_blocks & j) ? -1 : 1) / std::sqrt(static_cast<double>(block));
    }
  }
  return solver.eigenvectors().rowwise().reverse() * spread;
}

class Calibrator final : public KvCalibrator {
 public:
  explicit Calibrator(const KvGeometry& geometry)
      : geometry_(geometry), group_(geometry.n_heads / geometry.n_kv_heads) {
    const int d = geometry.head_dim;
    heads_.resize(static_cast<std::size_t>(geometry.n_layers) * geometry.n_kv_heads);
    for (HeadMoments& head : heads_) {
      head.query = head.key = head.value = head.weighted_value = Matrix::Zero(d, d);
      head.value_sum = Vector::Zero(d);
    }
    energy_.assign(static_cast<std::size_t>(geometry.n_layers) * geometry.n_heads, 0.0);
    output_.resize(energy_.size());
  }

  void observe(int layer, int n_rows, const float* q, const float* k, const float* v) override {
    const int d = geometry_.head_dim;
    for (int h = 0; h < geometry_.n_kv_heads; ++h) {
      HeadMoments& head = heads_[static_cast<std::size_t>(layer) * geometry_.n_kv_heads + h];
      const Eigen::OuterStride<> kv_stride(geometry_.n_kv_heads * d),
          q_stride(geometry_.n_heads * d);
      const FloatRows keys = StridedRows(k + h * d, n_rows, d, kv_stride);
      const FloatRows values = StridedRows(v + h * d, n_rows, d, kv_stride);
      for (int g = 0; g < group_; ++g) {
        const FloatRows queries = StridedRows(q + (h * group_ + g) * d, n_rows, d, q_stride);
        add_outer_products(queries, head.query);
        energy_[static_cast<std::size_t>(layer) * geometry_.n_heads + h * group_ + g] +=
            attention_energy(queries, keys);
      }
      head.n_query += static_cast<double>(n_rows) * group_;
      // Whole pages only: the mean of a part is not a page's.
      for (int t = 0; t + kPageTokens <= n_rows; t += kPageTokens) {
        const FloatRows page = keys.middleRows(t, kPageTokens);
        add_outer_products(page.rowwise() - page.colwise().mean(), head.key);
        head.n_key += kPageTokens;
      }
      add_outer_products(values, head.value);
      // OSCAR weights a value by what queries see of its key, k (E[q q^T]) k^T: by those seen so
      // far, where its own code has all of the text in memory.
      const Eigen::MatrixXf seen = (head.query / std::max(head.n_query, 1.0)).cast<float>();
      const Eigen::VectorXf weights =
          (keys * seen).cwiseProduct(keys).rowwise().sum().cwiseMax(0).cwiseSqrt();
      const FloatRows weighted = weights.asDiagonal() * values;
      add_outer_products(weighted, head.weighted_value);
      head.value_sum += values.colwise().sum().transpose().cast<double>();
      head.n_value += n_rows;
    }
  }

  void observe_output_matrix(int layer, const float* wo, std::int64_t hidden) override {
    const int d = geometry_.head_dim;
    for (int h = 0; h < geometry_.n_heads; ++h) {
      const FloatRows part = StridedRows(wo + static_cast<std::size_t>(h) * d, hidden, d,
                                         Eigen::OuterStride<>(geometry_.n_heads * d));
      output_[static_cast<std::size_t>(layer) * geometry_.n_heads + h] = (part.transpose() * part);
    }
  }

  std::shared_ptr<const KvCalibration> solve(std::function<void(double)> progress) override {
    const auto make = [&](KvTransformKind kind) {
      return std::make_shared<KvTransforms>(geometry_, kind, false);
    };
    const auto rotation = make(KvTransformKind::kRotation);
    const auto flat = make(KvTransformKind::kPaired);
    const auto classes = make(KvTransformKind::kPairedClasses);
    const int d = geometry_.head_dim;
    for (int i = 0; i < classes->n_transforms(); ++i) {
      const HeadMoments& head = heads_[i];
      const int layer = i / geometry_.n_kv_heads, kv_head = i % geometry_.n_kv_heads;
      const PairedBasis key = paired_basis(head.query / std::max(head.n_query, 1.0),
                                           head.key / std::max(head.n_key, 1.0));
      Matrix importance = Matrix::Zero(d, d);
      for (int g = 0; g < group_; ++g) {
        const std::size_t h =
            static_cast<std::size_t>(layer) * geometry_.n_heads + kv_head * group_ + g;
        importance += energy_[h] * (output_[h].size() > 0 ? Matrix(output_[h].cast<double>())
                                                          : Matrix::Identity(d, d));
      }
      const Vector mean = head.value_sum / std::max(head.n_value, 1.0);
      const PairedBasis value = paired_basis(
          importance, head.value / std::max(head.n_value, 1.0) - mean * mean.transpose());
      write_paired(key, value, mean, *flat, i);
      write_paired(key, value, mean, *classes, i);
      write_rotation(oscar_rotation(head.query), oscar_rotation(head.weighted_value), *rotation, i);
      if (progress) progress(static_cast<double>(i + 1) / classes->n_transforms());
    }
    auto calibration = std::make_shared<KvCalibration>(geometry_);
    calibration->add(rotation);
    calibration->add(flat);
    calibration->add(classes);
    return calibration;
  }

 private:
  // Sum over sampled rows of the mean sum of squared causal attention weights.
  double attention_energy(const FloatRows& queries, const FloatRows& keys) const {
    const int n = static_cast<int>(queries.rows());
    const float scale = 1 / std::sqrt(static_cast<float>(geometry_.head_dim));
    double sum = 0;
    for (int i = 1; i <= kEnergyRows; ++i) {
      const int row = static_cast<int>(static_cast<std::int64_t>(n) * i / kEnergyRows) - 1;
      if (row < 0) continue;
      const Eigen::ArrayXf logits =
          (keys.topRows(row + 1) * queries.row(row).transpose()).array() * scale;
      const Eigen::ArrayXf weights = (logits - logits.maxCoeff()).exp();
      const double mass = weights.sum();
      sum += weights.square().sum() / (mass * mass);
    }
    return sum / kEnergyRows;
  }

  static void write_rotation(const Matrix& key, const Matrix& value, KvTransforms& transforms,
                             int index) {
    const int d = static_cast<int>(key.rows());
    using Out = Eigen::Map<FloatRows>;
    float* at = transforms.floats(index);
    Out(at, d, d) = key.cast<float>();
    Out(at + d * d, d, d) = key.cast<float>();
    Out(at + 2 * d * d, d, d) = value.cast<float>();
    Out(at + 3 * d * d, d, d) = value.transpose().cast<float>();
  }

  static void write_paired(const PairedBasis& key_basis, const PairedBasis& value_basis,
                           const Vector& mean, KvTransforms& transforms, int index) {
    const int d = static_cast<int>(mean.size());
    const kernels::KvFormat& format = KvTransforms::format(transforms.kind());
    const bool classes = transforms.kind() == KvTransformKind::kPairedClasses;
    const int k_n = kernels::k_digits(format, d), v_n = kernels::v_digits(format, d);
    const Side key = with_classes(key_basis, k_n, classes);
    const Side value = with_classes(value_basis, v_n, classes);
    // Digit -> channel and weight: n4 high digits, n4 low, the rest.
    const auto channel = [&](const Side& side, int digit) {
      return digit < side.n4 ? digit : digit - side.n4;
    };
    const auto weight = [&](const Side& side, int digit) { return digit < side.n4 ? 4.0 : 1.0; };
    float* k_encode = transforms.floats(index);
    float *k_query = k_encode + d * d, *v_encode = k_query + d * k_n, *v_decode = v_encode + d * d,
          *vectors = v_decode + v_n * d;
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        k_encode[i * d + j] = static_cast<float>(key.encode(i, j));
        v_encode[i * d + j] = static_cast<float>(value.encode(i, j));
      }
      for (int j = 0; j < k_n; ++j)
        k_query[i * k_n + j] = static_cast<float>(key.decode(channel(key, j), i) * weight(key, j));
      for (int j = 0; j < v_n; ++j)
        v_decode[j * d + i] =
            static_cast<float>(value.decode(channel(value, j), i) * weight(value, j));
      // The row's scale is fitted to its 2-bit channels alone. The few 4-bit channels, with most of
      // the energy, would decide it otherwise, and they can bear a wrong scale: SmolLM2, KL to bf16
      // at 1.5K over text and code: .041/.035 weighted by energy, .027/.021 equally, .018/.018 by
      // the 2-bit channels alone.
      vectors[i] = static_cast<float>(i < key.n4 ? 0.0 : key.step[i] * key.step[i]);
      vectors[d + i] = static_cast<float>(i < value.n4 ? 0.0 : value.step[i] * value.step[i]);
      vectors[2 * d + i] = static_cast<float>(mean[i]);
    }
    transforms.at(index).k_n4 = key.n4;
    transforms.at(index).v_n4 = value.n4;
  }

  const KvGeometry geometry_;
  const int group_;
  std::vector<HeadMoments> heads_;       // [n_layers * n_kv_heads]
  std::vector<double> energy_;           // [n_layers * n_heads]
  std::vector<Eigen::MatrixXf> output_;  // Wo_h^T Wo_h, likewise
};

}  // namespace

std::unique_ptr<KvCalibrator> KvCalibrator::create(const KvGeometry& geometry) {
  return std::make_unique<Calibrator>(geometry);
}

}  // namespace foretoken
