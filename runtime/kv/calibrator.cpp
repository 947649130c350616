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

// One side (keys or values) of one head.
struct Side {
  Matrix encode;  // [in, channel], in units of the step
  Matrix decode;  // [channel, in]: channels back to the vector, per step
  Vector step;    // [channel]
  int n4 = 0;
};

Side solve_side(Matrix importance, Matrix energy) {
  const int d = static_cast<int>(energy.rows());
  add_ridge(importance);
  add_ridge(energy);
  const Roots e = roots(energy);
  const Matrix m = e.inverse_half * roots(e.half * importance * e.half).half * e.inverse_half;
  const Roots r = roots(0.5 * (m + m.transpose()));
  const Matrix c = r.half * energy * r.half;
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(0.5 * (c + c.transpose()));
  // Descending.
  const Vector values = solver.eigenvalues().reverse().cwiseMax(0);
  Matrix basis = solver.eigenvectors().rowwise().reverse();

  // Rotated inside a class, every channel has the class's mean energy and its mean importance.
  const auto mean = [&](int first, int n) { return n > 0 ? values.segment(first, n).mean() : 0.0; };
  Side side;
  double least = 0;
  for (const int sixteenths : kSixteenths) {
    const int n4 = sixteenths * d / 16, n2 = d - 2 * n4;
    const double loss = kError4 * n4 * std::pow(mean(0, n4), 2) +
                        kError2 * n2 * std::pow(mean(n4, n2), 2) +
                        kError0 * values.tail(n4).squaredNorm();
    if (sixteenths == 0 || loss < least) least = loss, side.n4 = n4;
  }

  const int first[] = {0, side.n4, d - side.n4}, size[] = {side.n4, d - 2 * side.n4, side.n4};
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
    side.step.segment(first[k], n).setConstant(deviation * (k == 0 ? kStep4 : kStep2));
  }
  side.encode = r.half * basis * side.step.cwiseInverse().asDiagonal();
  side.decode = side.step.asDiagonal() * basis.transpose() * r.inverse_half;
  return side;
}

class Calibrator final : public KvCalibrator {
 public:
  explicit Calibrator(const KvGeometry& geometry)
      : geometry_(geometry), group_(geometry.n_heads / geometry.n_kv_heads) {
    const int d = geometry.head_dim;
    heads_.resize(static_cast<std::size_t>(geometry.n_layers) * geometry.n_kv_heads);
    for (HeadMoments& head : heads_) {
      head.query = head.key = head.value = Matrix::Zero(d, d);
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
    auto transforms = std::make_shared<KvTransforms>(geometry_);
    const int d = geometry_.head_dim;
    for (int i = 0; i < transforms->n_transforms(); ++i) {
      const HeadMoments& head = heads_[i];
      const int layer = i / geometry_.n_kv_heads, kv_head = i % geometry_.n_kv_heads;
      const Side key = solve_side(head.query / std::max(head.n_query, 1.0),
                                  head.key / std::max(head.n_key, 1.0));
      Matrix importance = Matrix::Zero(d, d);
      for (int g = 0; g < group_; ++g) {
        const std::size_t h =
            static_cast<std::size_t>(layer) * geometry_.n_heads + kv_head * group_ + g;
        importance += energy_[h] * (output_[h].size() > 0 ? Matrix(output_[h].cast<double>())
                                                          : Matrix::Identity(d, d));
      }
      const Vector mean = head.value_sum / std::max(head.n_value, 1.0);
      const Side value = solve_side(
          importance, head.value / std::max(head.n_value, 1.0) - mean * mean.transpose());
      write(key, value, mean, transforms->floats(i), transforms->at(i));
      if (progress) progress(static_cast<double>(i + 1) / transforms->n_transforms());
    }
    return transforms;
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

  static void write(const Side& key, const Side& value, const Vector& mean, float* at,
                    kernels::Int2Transform& view) {
    const int d = static_cast<int>(mean.size());
    const std::size_t square = static_cast<std::size_t>(d) * d;
    // Digit -> channel and weight: n4 high digits, n4 low, the rest.
    const auto channel = [&](const Side& side, int digit) {
      return digit < side.n4 ? digit : digit - side.n4;
    };
    const auto weight = [&](const Side& side, int digit) { return digit < side.n4 ? 4.0 : 1.0; };
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        at[i * d + j] = static_cast<float>(key.encode(i, j));
        at[square + i * d + j] =
            static_cast<float>(key.decode(channel(key, j), i) * weight(key, j));
        at[2 * square + i * d + j] = static_cast<float>(value.encode(i, j));
        at[3 * square + i * d + j] =
            static_cast<float>(value.decode(channel(value, i), j) * weight(value, i));
      }
      // The row's scale is fitted to its 2-bit channels alone. The few 4-bit channels, with most of
      // the energy, would decide it otherwise, and they can bear a wrong scale: SmolLM2, KL to bf16
      // at 1.5K over text and code: .041/.035 weighted by energy, .027/.021 equally, .018/.018 by
      // the 2-bit channels alone.
      at[4 * square + i] = static_cast<float>(i < key.n4 ? 0.0 : key.step[i] * key.step[i]);
      at[4 * square + d + i] =
          static_cast<float>(i < value.n4 ? 0.0 : value.step[i] * value.step[i]);
      at[4 * square + 2 * d + i] = static_cast<float>(mean[i]);
    }
    view.k_n4 = key.n4;
    view.v_n4 = value.n4;
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
