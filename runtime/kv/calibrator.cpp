#include "runtime/kv/calibrator.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "foretoken/kernels/uniform_quantiser.h"
#include "runtime/kv/calibration_transforms.h"
#include "runtime/kv/dense.h"

namespace foretoken {
namespace {

using kernels::kPageTokens;
using kernels::kUniformQuantiser;
using namespace dense;
using StridedRows = Eigen::Map<const FloatRows, 0, Eigen::OuterStride<>>;

// Of the mean variance: keeps directions that the text never used from being scaled without bound.
constexpr double kRidge = 1e-3;
// One query in so many is weighed: about half of the time that calibration takes.
constexpr int kSampleStride = 16;
// What a row counts that attention passes over, of the mean weight: text unlike this one may not.
// (Not tuned.)
constexpr double kFloor = 0.1;
// Where a window is long enough, only what a query reads sealed counts: past a sink of a page, and
// before a recent window of four.
constexpr int kSinkPages = 1, kWindowPages = 4, kLeastPages = 16;
constexpr int kSixteenths[] = {0, 1, 2, 3, 4, 6};  // candidates for n4, in d/16

struct HeadMoments {
  Matrix query, key, value;  // weighted sums of outer products
  Vector value_sum;
  double query_weight = 0, key_weight = 0, value_weight = 0;
  Matrix plain_query, oscar_value;  // as OSCAR weighs them: not, and by what queries see of a key
  double n_query = 0;
};

void add_outer_products(const FloatRows& rows, Matrix& sum) {
  sum += gram(rows, rows).cast<double>();
}
void add_outer_products(const FloatRows& rows, const Eigen::VectorXf& weights, Matrix& sum) {
  sum += gram(weights.asDiagonal() * rows, rows).cast<double>();
}

struct Roots {
  Matrix half, inverse_half;
};
Roots roots(const Matrix& symmetric) {
  const auto [eigenvalues, u] = eigensystem(symmetric);
  const double floor = std::max(eigenvalues.maxCoeff() * 1e-12, 1e-30);
  const Vector root = eigenvalues.cwiseMax(floor).cwiseSqrt();
  return {product(u * root.asDiagonal(), u.transpose()),
          product(u * root.cwiseInverse().asDiagonal(), u.transpose())};
}

void add_ridge(Matrix& m) {
  m = (0.5 * (m + m.transpose())).eval();
  const double mean = m.trace() / double(m.rows());
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
  const Matrix middle = roots(product(product(e.half, importance), e.half)).half;
  const Matrix m = product(product(e.inverse_half, middle), e.inverse_half);
  const Roots r = roots(0.5 * (m + m.transpose()));
  const Matrix c = product(product(r.half, energy), r.half);
  const auto [values, vectors] = eigensystem(0.5 * (c + c.transpose()));
  return {r.half, r.inverse_half, vectors.rowwise().reverse(), values.reverse().cwiseMax(0)};
}

// The transform of one side.
struct Side {
  Matrix encode;  // [in, channel], in units of the step
  Matrix decode;  // [channel, in]: channels back to the vector, per step
  Vector step;    // [channel]
  int n4 = 0;     // channels of two digits
};

// Channels in up to three classes: two digits, one, none; n_digits of `bits` bits in all. Without
// classes all channels have one digit.
Side with_classes(const PairedBasis& paired, int n_digits, int bits, bool classes) {
  const int d = int(paired.values.size());
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
    const double loss = kUniformQuantiser[2 * bits].error * n4 * std::pow(mean(0, n4), 2) +
                        kUniformQuantiser[bits].error * n2 * std::pow(mean(n4, n2), 2) +
                        paired.values.tail(none).squaredNorm();
    if (least < 0 || loss < least) least = loss, side.n4 = n4, n0 = none;
  }

  const int first[] = {0, side.n4, d - n0}, size[] = {side.n4, d - side.n4 - n0, n0};
  side.step = Vector::Ones(d);
  for (int k = 0; k < 3; ++k) {
    const int n = size[k];
    if (n == 0) continue;
    Matrix rotation(n, n);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) rotation(i, j) = hartley(n, i, j);
    basis.middleCols(first[k], n) = product(basis.middleCols(first[k], n), rotation);
    const double deviation = std::sqrt(std::max(mean(first[k], n), 1e-20));
    side.step.segment(first[k], n)
        .setConstant(deviation * kUniformQuantiser[k == 0 ? 2 * bits : bits].step);
  }
  side.encode = product(paired.half, basis) * side.step.cwiseInverse().asDiagonal();
  side.decode = product(side.step.asDiagonal() * basis.transpose(), paired.inverse_half);
  return side;
}

// OSCAR: the eigenbasis of a moment, spread by a Hadamard matrix; where d is no power of two, by
// one of its largest power of two in blocks, the i-th direction in block i mod n_blocks, so that
// all blocks have the same mix. [in, channel].
Matrix oscar_rotation(const Matrix& moment) {
  const Matrix vectors = eigensystem(0.5 * (moment + moment.transpose())).vectors;
  const int d = int(moment.rows()), block = d & -d, n_blocks = d / block;
  Matrix spread = Matrix::Zero(d, d);
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < block; ++j) {
      spread(i, i % n_blocks * block + j) =
          (__builtin_parity(i / n_blocks & j) ? -1 : 1) / std::sqrt(double(block));
    }
  }
  return product(vectors.rowwise().reverse(), spread);
}

// What attention makes of a window's rows in one layer and KV head.
struct Weights {
  std::vector<int> rows;               // of the window: the sampled queries
  std::vector<Eigen::VectorXf> query;  // [group] of [rows]
  Eigen::VectorXf key, value;          // [n_rows]
};

class Calibrator final : public KvCalibrator {
 public:
  explicit Calibrator(const KvGeometry& geometry)
      : geometry_(geometry),
        group_(geometry.n_heads / geometry.n_kv_heads),
        weights_(geometry.n_kv_heads) {
    const int d = geometry.head_dim;
    heads_.resize(std::size_t(geometry.n_layers) * geometry.n_kv_heads);
    for (HeadMoments& head : heads_) {
      for (Matrix* m : {&head.query, &head.key, &head.value, &head.plain_query, &head.oscar_value})
        *m = Matrix::Zero(d, d);
      head.value_sum = Vector::Zero(d);
    }
    energy_.assign(std::size_t(geometry.n_layers) * geometry.n_heads, 0.0);
    output_.resize(energy_.size());
    output_half_.resize(energy_.size());
  }

  void weigh(int layer, int n_rows, const float* q, const float* k, const float* v,
             kernels::ThreadPool* pool) override {
    for_heads(pool, [&](int h) { weigh_head(layer, h, n_rows, q, k, v); });
  }

  void add_moments(int layer, int first, int n, const float* q, const float* k, const float* v,
                   kernels::ThreadPool* pool) override {
    for_heads(pool, [&](int h) { add_head(layer, h, first, n, q, k, v); });
  }

  void observe_output_matrix(int layer, const float* wo, std::int64_t hidden) override {
    const int d = geometry_.head_dim;
    for (int h = 0; h < geometry_.n_heads; ++h) {
      const FloatRows part = StridedRows(wo + std::size_t(h) * d, hidden, d,
                                         Eigen::OuterStride<>(geometry_.n_heads * d));
      const std::size_t i = std::size_t(layer) * geometry_.n_heads + h;
      output_[i] = gram(part, part);
      output_half_[i] = roots(output_[i].cast<double>()).half.cast<float>();
    }
  }

  std::shared_ptr<const KvCalibration> solve(std::function<void(double)> progress) override {
    const auto make = [&](KvTransformKind kind) {
      return std::make_shared<KvTransforms>(geometry_, kind, false);
    };
    const auto rotation = make(KvTransformKind::kRotation);
    const auto flat = make(KvTransformKind::kPaired);
    const auto classes2 = make(KvTransformKind::kPairedClasses2);
    const auto classes4 = make(KvTransformKind::kPairedClasses4);
    const int d = geometry_.head_dim;
    for (int i = 0; i < flat->n_transforms(); ++i) {
      const HeadMoments& head = heads_[i];
      const int layer = i / geometry_.n_kv_heads, kv_head = i % geometry_.n_kv_heads;
      const PairedBasis key = paired_basis(head.query / positive(head.query_weight),
                                           head.key / positive(head.key_weight));
      Matrix importance = Matrix::Zero(d, d);
      for (int g = 0; g < group_; ++g) {
        const std::size_t h = std::size_t(layer) * geometry_.n_heads + kv_head * group_ + g;
        importance += energy_[h] * (output_[h].size() > 0 ? Matrix(output_[h].cast<double>())
                                                          : Matrix::Identity(d, d));
      }
      const Vector mean = head.value_sum / positive(head.value_weight);
      const PairedBasis value = paired_basis(
          importance, head.value / positive(head.value_weight) - mean * mean.transpose());
      for (const auto& transforms : {flat, classes2, classes4})
        write_paired(key, value, mean, *transforms, i);
      write_rotation(oscar_rotation(head.plain_query), oscar_rotation(head.oscar_value), *rotation,
                     i);
      if (progress) progress(double(i + 1) / flat->n_transforms());
    }
    auto calibration = std::make_shared<KvCalibration>(geometry_);
    calibration->add(rotation);
    for (const auto& transforms : {flat, classes2, classes4}) calibration->add(transforms);
    return calibration;
  }

 private:
  static double positive(double weight) { return weight > 0 ? weight : 1.0; }

  template <class F>
  void for_heads(kernels::ThreadPool* pool, F&& work) {
    if (pool != nullptr) {
      pool->tasks(geometry_.n_kv_heads, [&](int h, int) { work(h); });
    } else {
      for (int h = 0; h < geometry_.n_kv_heads; ++h) work(h);
    }
  }

  // An error e_j of a sealed key moves the logit of query i by q_i . e_j, and the head's output to
  // first order by p_ij (q_i . e_j) (v_j - o_i): in the layer's output, squared,
  //   w_ij (q_i . e_j)^2   with   w_ij = p_ij^2 |Wo (v_j - o_i)|^2.
  // So a query counts by its sum of w over what it reads sealed, and a key by its sum over queries.
  // An error of a value costs p_ij^2 |Wo e_j|^2. SmolLM2, KL to bf16 at 4K of a manual and of
  // Python: .081 and .055 with all rows alike and a text of two thirds the length, .048 and .040
  // with this.
  void weigh_head(int layer, int h, int n_rows, const float* q, const float* k, const float* v) {
    const int d = geometry_.head_dim, pages = n_rows / kPageTokens;
    const bool whole = pages >= kLeastPages;
    const int sink = whole ? kSinkPages * kPageTokens : 0;
    const auto sealed_end = [&](int row) {
      return whole ? (row / kPageTokens - kWindowPages) * kPageTokens : row + 1;
    };
    Weights& w = weights_[h];
    w.rows.clear();
    const int stride = whole ? kSampleStride : 1;
    const int first = whole ? (kSinkPages + kWindowPages + 1) * kPageTokens : 0;
    // Not the same ones in every layer.
    for (int r = first + (layer * 5 + h * 3) % stride; r < n_rows; r += stride) w.rows.push_back(r);
    const auto n = int(w.rows.size());
    w.query.assign(group_, Eigen::VectorXf::Zero(n));
    w.key = w.value = Eigen::VectorXf::Zero(n_rows);
    const Eigen::OuterStride<> kv_stride(geometry_.n_kv_heads * d), q_stride(geometry_.n_heads * d);
    const FloatRows keys = StridedRows(k + h * d, n_rows, d, kv_stride);
    const FloatRows values = StridedRows(v + h * d, n_rows, d, kv_stride);
    const float scale = 1 / std::sqrt(float(d));
    for (int g = 0; g < group_; ++g) {
      const int head = h * group_ + g;
      const std::size_t i = std::size_t(layer) * geometry_.n_heads + head;
      const StridedRows all(q + head * d, n_rows, d, q_stride);
      FloatRows queries(n, d);
      for (int s = 0; s < n; ++s) queries.row(s) = all.row(w.rows[s]);
      FloatRows p = product_transposed(keys, queries).transpose() * scale;  // [sampled, n_rows]
      for (int s = 0; s < n; ++s) {
        auto seen = p.row(s).head(w.rows[s] + 1).array();
        seen = (seen - seen.maxCoeff()).exp();
        seen /= seen.sum();
        p.row(s).tail(n_rows - w.rows[s] - 1).setZero();
      }
      const FloatRows u =
          output_half_[i].size() > 0 ? row_product(values, output_half_[i]) : values;
      const FloatRows o = row_product(p, u), cross = product_transposed(o, u);
      const Eigen::VectorXf u2 = u.rowwise().squaredNorm(), o2 = o.rowwise().squaredNorm();
      const float trace = output_[i].size() > 0 ? output_[i].trace() : float(d);
      double energy = 0;
      for (int s = 0; s < n; ++s) {
        const int length = sealed_end(w.rows[s]) - sink;
        if (length <= 0) continue;
        const Eigen::VectorXf p2 = p.row(s).segment(sink, length).cwiseAbs2();
        const Eigen::VectorXf apart = (u2.segment(sink, length).array() + o2[s] -
                                       2 * cross.row(s).segment(sink, length).transpose().array())
                                          .cwiseMax(0);
        const Eigen::VectorXf weight = p2.cwiseProduct(apart);
        w.query[g][s] = weight.sum();
        w.key.segment(sink, length) += weight;
        w.value.segment(sink, length) += trace * p2;
        energy += p2.sum();
      }
      energy_[i] += energy;
    }
    // Nothing is worth nothing.
    const auto raise = [](Eigen::VectorXf& x) {
      if (x.size() > 0) x.array() += float(kFloor) * x.mean() + 1e-20f;
    };
    for (Eigen::VectorXf& x : w.query) raise(x);
    raise(w.key);
    raise(w.value);

    HeadMoments& moments = heads_[std::size_t(layer) * geometry_.n_kv_heads + h];
    add_outer_products(values, w.value, moments.value);
    moments.value_sum += (values.transpose() * w.value).cast<double>();
    moments.value_weight += w.value.sum();
  }

  void add_head(int layer, int h, int first, int n, const float* q, const float* k,
                const float* v) {
    const int d = geometry_.head_dim;
    HeadMoments& moments = heads_[std::size_t(layer) * geometry_.n_kv_heads + h];
    const Weights& w = weights_[h];
    const Eigen::OuterStride<> kv_stride(geometry_.n_kv_heads * d), q_stride(geometry_.n_heads * d);
    const FloatRows keys = StridedRows(k + h * d, n, d, kv_stride);
    const FloatRows values = StridedRows(v + h * d, n, d, kv_stride);
    const auto begin = std::lower_bound(w.rows.begin(), w.rows.end(), first) - w.rows.begin(),
               end = std::lower_bound(w.rows.begin(), w.rows.end(), first + n) - w.rows.begin();
    for (int g = 0; g < group_ && begin < end; ++g) {
      const StridedRows all(q + (h * group_ + g) * d, n, d, q_stride);
      FloatRows queries(end - begin, d);
      for (auto s = begin; s < end; ++s) queries.row(s - begin) = all.row(w.rows[s] - first);
      const Eigen::VectorXf weights = w.query[g].segment(begin, end - begin);
      add_outer_products(queries, weights, moments.query);
      moments.query_weight += weights.sum();
      add_outer_products(queries, moments.plain_query);
      moments.n_query += double(end - begin);
    }
    // Whole pages only: the mean of a part is not a page's.
    for (int t = 0; t + kPageTokens <= n; t += kPageTokens) {
      const FloatRows page = keys.middleRows(t, kPageTokens);
      const Eigen::VectorXf weights = w.key.segment(first + t, kPageTokens);
      add_outer_products(page.rowwise() - page.colwise().mean(), weights, moments.key);
      moments.key_weight += weights.sum();
    }
    // OSCAR weights a value by what queries see of its key, k (E[q q^T]) k^T: by those seen so
    // far, where its own code has all of the text in memory.
    const FloatRows seen =
        (moments.plain_query.transpose() / std::max(moments.n_query, 1.0)).cast<float>();
    const FloatRows by_key = row_product(seen, keys.transpose());  // [d, n]
    const Eigen::VectorXf weights =
        by_key.transpose().cwiseProduct(keys).rowwise().sum().cwiseMax(0);
    add_outer_products(values, weights, moments.oscar_value);
  }

  static void write_rotation(const Matrix& key, const Matrix& value, KvTransforms& transforms,
                             int index) {
    const int d = int(key.rows());
    using Out = Eigen::Map<FloatRows>;
    float* at = transforms.floats(index);
    Out(at, d, d) = key.cast<float>();
    Out(at + d * d, d, d) = key.cast<float>();
    Out(at + 2 * d * d, d, d) = value.cast<float>();
    Out(at + 3 * d * d, d, d) = value.transpose().cast<float>();
  }

  static void write_paired(const PairedBasis& key_basis, const PairedBasis& value_basis,
                           const Vector& mean, KvTransforms& transforms, int index) {
    const int d = int(mean.size());
    const kernels::KvFormat& format = KvTransforms::format(transforms.kind());
    const bool classes = kernels::has_classes(transforms.kind());
    const int k_n = kernels::k_digits(format, d), v_n = kernels::v_digits(format, d);
    // (Without classes, int8: its scale is each row's own, and any step would do.)
    const int bits = classes ? format.bits : 4;
    const Side key = with_classes(key_basis, k_n, bits, classes);
    const Side value = with_classes(value_basis, v_n, bits, classes);
    // Digit -> channel and weight: n4 high digits, n4 low, the rest.
    const auto channel = [&](const Side& side, int digit) {
      return digit < side.n4 ? digit : digit - side.n4;
    };
    const auto weight = [&](const Side& side, int digit) {
      return digit < side.n4 ? double(1 << format.bits) : 1.0;
    };
    float* k_encode = transforms.floats(index);
    float *k_query = k_encode + d * d, *v_encode = k_query + d * k_n, *v_decode = v_encode + d * d,
          *vectors = v_decode + v_n * d;
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        k_encode[i * d + j] = float(key.encode(i, j));
        v_encode[i * d + j] = float(value.encode(i, j));
      }
      for (int j = 0; j < k_n; ++j)
        k_query[i * k_n + j] = float(key.decode(channel(key, j), i) * weight(key, j));
      for (int j = 0; j < v_n; ++j)
        v_decode[j * d + i] = float(value.decode(channel(value, j), i) * weight(value, j));
      // The row's scale is fitted to its 2-bit channels alone. The few 4-bit channels, with most of
      // the energy, would decide it otherwise, and they can bear a wrong scale: SmolLM2, KL to bf16
      // at 1.5K over text and code: .041/.035 weighted by energy, .027/.021 equally, .018/.018 by
      // the 2-bit channels alone.
      vectors[i] = float(i < key.n4 ? 0.0 : key.step[i] * key.step[i]);
      vectors[d + i] = float(i < value.n4 ? 0.0 : value.step[i] * value.step[i]);
      vectors[2 * d + i] = float(mean[i]);
    }
    transforms.at(index).k_n4 = key.n4;
    transforms.at(index).v_n4 = value.n4;
  }

  const KvGeometry geometry_;
  const int group_;
  std::vector<HeadMoments> heads_;       // [n_layers * n_kv_heads]
  std::vector<double> energy_;           // [n_layers * n_heads]
  std::vector<Eigen::MatrixXf> output_;  // Wo_h^T Wo_h, likewise
  std::vector<FloatRows> output_half_;   // its root
  std::vector<Weights> weights_;         // [n_kv_heads] of the window last weighed
};

}  // namespace

std::unique_ptr<KvCalibrator> KvCalibrator::create(const KvGeometry& geometry) {
  return std::make_unique<Calibrator>(geometry);
}

}  // namespace foretoken
