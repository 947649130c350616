// The paired transform on synthetic moments, and its file as hostile input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <tuple>

#include "runtime/kv/calibration.h"
#include "runtime/kv/calibrator.h"
#include "runtime/kv/kv_cache.h"
#include "tests/unit/kv/synthetic.h"

namespace foretoken::kv_test::calibration {
namespace {

constexpr KvGeometry kGeometry{.n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 32};

// Queries and keys of very unequal directions, the keys with a bias hundreds of times their spread.
struct Source {
  int d = kGeometry.head_dim;
  std::mt19937_64 random{9};
  std::vector<double> q_basis, k_basis;
  std::vector<float> bias;

  Source()
      : q_basis(random_orthogonal(d, random)),
        k_basis(random_orthogonal(d, random)),
        bias(normal(d, random, 100)) {}
  void row(const std::vector<double>& basis, double fall, bool with_bias, float* out) {
    const auto x = normal(d, random);
    for (int j = 0; j < d; ++j) {
      double sum = with_bias ? bias[j] : 0;
      for (int i = 0; i < d; ++i) sum += basis[j * d + i] * std::exp(-fall * i / d) * x[i];
      out[j] = static_cast<float>(sum);
    }
  }
  void window(int n, std::vector<float>& q, std::vector<float>& k, std::vector<float>& v) {
    q.resize(n * 4 * d), k.resize(n * 2 * d), v.resize(n * 2 * d);
    for (int r = 0; r < n * 4; ++r) row(q_basis, 4, false, &q[r * d]);
    for (int r = 0; r < n * 2; ++r)
      row(k_basis, 4, true, &k[r * d]), row(q_basis, 2, false, &v[r * d]);
  }
};

std::shared_ptr<const KvCalibration> calibrated(Source& source) {
  auto calibrator = KvCalibrator::create(kGeometry);
  std::vector<float> q, k, v;
  for (int w = 0; w < 4; ++w) {
    source.window(256, q, k, v);
    for (int l = 0; l < kGeometry.n_layers; ++l) {
      calibrator->weigh(l, 256, q.data(), k.data(), v.data(), nullptr);
      calibrator->add_moments(l, 0, 256, q.data(), k.data(), v.data(), nullptr);
    }
  }
  const auto wo = normal(48 * 4 * 32, source.random);
  for (int l = 0; l < kGeometry.n_layers; ++l) calibrator->observe_output_matrix(l, wo.data(), 48);
  return calibrator->solve(nullptr);
}

// Root mean square error of q . k through a sealed page of fresh rows, relative to q . (k - mean).
double logit_error(Source& source, const kernels::KvTransform& transform,
                   KvMode mode = KvMode::kInt2) {
  const int d = kGeometry.head_dim;
  std::vector<std::byte> hot(kernels::hot_page_bytes(d)),
      sealed(kernels::sealed_page_bytes(mode, d));
  std::vector<float> row(d), v(d), keys(kPageTokens * d), decoded(kPageTokens * d),
      values(kPageTokens * d);
  double error = 0, norm = 0;
  for (int page = 0; page < 8; ++page) {
    std::vector<double> mean(d, 0.0);
    for (int t = 0; t < kPageTokens; ++t) {
      source.row(source.k_basis, 4, true, row.data());
      source.row(source.q_basis, 2, false, v.data());
      kernels::store_kv(hot.data(), d, t, row.data(), v.data());
      kernels::load_k(hot.data(), d, t, &keys[t * d]);
      for (int c = 0; c < d; ++c) mean[c] += keys[t * d + c] / kPageTokens;
    }
    kernels::seal_page(hot.data(), mode, transform, d, sealed.data());
    kernels::dequantize_sealed_page(sealed.data(), mode, transform, d, decoded.data(),
                                    values.data());
    for (int n = 0; n < 16; ++n) {
      source.row(source.q_basis, 4, false, row.data());
      for (int t = 0; t < kPageTokens; ++t) {
        double e = 0, x = 0;
        for (int c = 0; c < d; ++c) {
          e += row[c] * (decoded[t * d + c] - double(keys[t * d + c]));
          x += row[c] * (keys[t * d + c] - mean[c]);
        }
        error += e * e, norm += x * x;
      }
    }
  }
  return std::sqrt(error / norm);
}

TEST(KvCalibration, PairedBeatsTheControlsByFar) {
  Source source;
  const auto paired = calibrated(source);
  const double ours = logit_error(source, paired->layer(KvMode::kInt2, 1)[1]);
  EXPECT_LT(ours, 0.3);
  EXPECT_GT(logit_error(source, KvCalibration::hadamard(kGeometry)->layer(KvMode::kInt2, 1)[1]),
            10 * ours);
  EXPECT_GT(logit_error(source, KvCalibration::naive(kGeometry)->layer(KvMode::kInt2, 1)[1]),
            10 * ours);
  // The calibration weighs rows by what attention reads of them, this error all alike: less of the
  // gain shows here than in a model's output (tests/integration/kv_quality_test.cpp).
  EXPECT_GT(logit_error(source, KvCalibration::data_free(kGeometry)->layer(KvMode::kInt2, 1)[1]),
            1.25 * ours);
}

TEST(KvCalibration, EncodingAndDecodingAreInverse) {
  Source source;
  const auto paired = calibrated(source);
  const int d = kGeometry.head_dim;
  for (const KvMode mode : {KvMode::kInt2, KvMode::kInt4}) {
    const int k_n = kernels::k_digits(kernels::kv_format(mode), d),
              v_n = kernels::v_digits(kernels::kv_format(mode), d);
    for (int h = 0; h < 2; ++h) {
      const kernels::KvTransform& t = paired->layer(mode, 0)[h];
      const int k_coded = k_n - t.k_n4, v_coded = v_n - t.v_n4;
      double trace = 0;
      for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
          double k = 0, v = 0;
          for (int c = 0; c < k_coded; ++c)
            k += double(t.k_encode[i * d + c]) * t.k_query[j * k_n + t.k_n4 + c];
          for (int c = 0; c < v_coded; ++c)
            v += double(t.v_encode[i * d + c]) * t.v_decode[(t.v_n4 + c) * d + j];
          // Without dropped channels the product is the identity; with them, a projection: its
          // trace tells.
          if (k_coded == d) {
            EXPECT_NEAR(k, i == j, 1e-3);
          }
          if (v_coded == d) {
            EXPECT_NEAR(v, i == j, 1e-3);
          }
          if (i == j) trace += k;
        }
      }
      EXPECT_NEAR(trace, k_coded, 1e-2);
    }
  }
}

// OSCAR's rotations are orthogonal, and K's lays every direction of the queries' moment over all
// channels alike: in the rotated basis each channel has the mean energy.
TEST(KvCalibration, RotationsAreOrthogonalAndSpread) {
  Source source;
  const auto made = calibrated(source);
  const int d = kGeometry.head_dim;
  for (int h = 0; h < 2; ++h) {
    const kernels::KvTransform& t = made->layer(KvMode::kInt2Oscar, 1)[h];
    for (const auto& [encode, decode, transposed] :
         {std::tuple{t.k_encode, t.k_query, false}, {t.v_encode, t.v_decode, true}}) {
      for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
          double x = 0;
          for (int c = 0; c < d; ++c)
            x += double(encode[i * d + c]) * (transposed ? decode[c * d + j] : decode[j * d + c]);
          ASSERT_NEAR(x, i == j, 1e-5);
        }
      }
    }
    EXPECT_NE(0, std::memcmp(t.k_encode, t.v_encode, d * d * 4));
    std::vector<double> energy(d, 0.0);
    std::vector<float> q(d);
    for (int n = 0; n < 4000; ++n) {
      source.row(source.q_basis, 4, false, q.data());
      for (int c = 0; c < d; ++c) {
        double x = 0;
        for (int i = 0; i < d; ++i) x += double(q[i]) * t.k_encode[i * d + c];
        energy[c] += x * x / 4000;
      }
    }
    const double mean = std::accumulate(energy.begin(), energy.end(), 0.0) / d;
    for (int c = 0; c < d; ++c) EXPECT_NEAR(energy[c] / mean, 1, 0.35) << c;
  }
}

TEST(KvCalibration, TheHadamardIsOrthogonalInBlocksAtEveryHeadDimension) {
  for (const auto& [d, block] : {std::pair{64, 64}, {80, 16}, {96, 32}, {128, 128}, {256, 128}}) {
    const KvCalibration calibration({.n_layers = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = d});
    const kernels::KvTransform& t = *calibration.layer(KvMode::kInt4Saw, 0);
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        double x = 0;
        for (int c = 0; c < d; ++c) x += double(t.k_encode[i * d + c]) * t.k_query[j * d + c];
        ASSERT_NEAR(x, i == j, 1e-5) << d;
        ASSERT_NEAR(std::abs(t.k_encode[i * d + j]),
                    i / block == j / block ? 1 / std::sqrt(double(block)) : 0, 1e-6)
            << d;
      }
    }
    EXPECT_EQ(t.v_encode, nullptr);
  }
}

// More bits, less error; and the rotation of OSCAR cannot do what pairing does for these keys.
TEST(KvCalibration, ModesRankAsTheirBitsDo) {
  Source source;
  const auto made = calibrated(source);
  const auto error = [&](KvMode mode) {
    return logit_error(source, made->layer(mode, 1)[1], mode);
  };
  const double int8 = error(KvMode::kInt8), int4 = error(KvMode::kInt4),
               int2 = error(KvMode::kInt2);
  EXPECT_LT(int8, 0.012);
  EXPECT_LT(int4, 0.12);
  EXPECT_LT(int8, int4 / 6);
  EXPECT_LT(int4, int2 / 1.5);
  EXPECT_GT(error(KvMode::kInt2Oscar), 5 * int2);
  EXPECT_GT(error(KvMode::kInt4Saw), 5 * int4);
  EXPECT_LT(error(KvMode::kInt2Kitty), error(KvMode::kInt2Oscar));
}

class KvCalibrationFile : public ::testing::Test {
 protected:
  KvCalibrationFile() {
    path_ =
        (std::filesystem::temp_directory_path() / ("kv_calibration_" + std::to_string(::getpid())))
            .string();
    fingerprint_.fill(7);
  }
  ~KvCalibrationFile() override { std::filesystem::remove(path_); }
  std::string read() {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  }
  std::string message(const KvGeometry& geometry = kGeometry) {
    const auto loaded = KvCalibration::load(path_, geometry, fingerprint_);
    return loaded ? "" : loaded.error().message;
  }
  std::string path_;
  std::array<std::uint8_t, 32> fingerprint_;
};

TEST_F(KvCalibrationFile, ComesBackBitForBit) {
  Source source;
  const auto made = calibrated(source);
  ASSERT_TRUE(made->save(path_, fingerprint_));
  const auto loaded = KvCalibration::load(path_, kGeometry, fingerprint_);
  ASSERT_TRUE(loaded) << loaded.error().message;
  const int d = kGeometry.head_dim;
  for (const KvMode mode : kv_modes()) {
    ASSERT_TRUE((*loaded)->covers(mode)) << kv_mode_name(mode);
    const kernels::KvFormat& format = kernels::kv_format(mode);
    for (int l = 0; l < 2; ++l) {
      for (int h = 0; h < 2; ++h) {
        const auto &a = made->layer(mode, l)[h], &b = (*loaded)->layer(mode, l)[h];
        EXPECT_EQ(a.k_n4, b.k_n4);
        EXPECT_EQ(a.v_n4, b.v_n4);
        for (const auto& [x, y, n] : {std::tuple{a.k_encode, b.k_encode, d * d},
                                      {a.k_query, b.k_query, d * kernels::k_digits(format, d)},
                                      {a.v_encode, b.v_encode, d * d},
                                      {a.v_decode, b.v_decode, d * kernels::v_digits(format, d)},
                                      {a.v_mean, b.v_mean, d},
                                      {a.k_weight, b.k_weight, d}}) {
          ASSERT_EQ(x == nullptr, y == nullptr);
          if (x != nullptr) {
            EXPECT_EQ(0, std::memcmp(x, y, n * 4));
          }
        }
      }
    }
  }
  // What another mode needs is left out on demand.
  const auto one = KvCalibration::load(path_, kGeometry, fingerprint_, KvMode::kInt2Oscar);
  ASSERT_TRUE(one) << one.error().message;
  for (const KvMode mode : kv_modes()) {
    EXPECT_EQ((*one)->covers(mode), mode == KvMode::kInt2Oscar || !kv_mode_needs_calibration(mode))
        << kv_mode_name(mode);
  }
  ASSERT_TRUE(KvCalibration(kGeometry).save(path_, fingerprint_));
  EXPECT_TRUE(KvCalibration::load(path_, kGeometry, fingerprint_, KvMode::kInt4Saw));
  const auto none = KvCalibration::load(path_, kGeometry, fingerprint_, KvMode::kInt4);
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message, ::testing::HasSubstr("has no transforms for int4"));
}

TEST_F(KvCalibrationFile, EveryKindOfDamageIsAClearError) {
  EXPECT_THAT(message(), ::testing::HasSubstr("no such file"));
  ASSERT_TRUE(KvCalibration::data_free(kGeometry)->save(path_, fingerprint_));
  const std::string good = read();
  EXPECT_EQ(message(), "");
  fingerprint_[3] ^= 1;
  EXPECT_THAT(message(), ::testing::HasSubstr("another model"));
  fingerprint_[3] ^= 1;
  KvGeometry other = kGeometry;
  other.head_dim = 64;
  EXPECT_THAT(message(other), ::testing::HasSubstr("wanted 2, 4, 2 of 64"));
  for (const std::size_t size : {std::size_t{0}, std::size_t{7}, std::size_t{55}, std::size_t{64},
                                 good.size() / 2, good.size() - 1}) {
    write(good.substr(0, size));
    EXPECT_NE(message(), "") << size;
  }
  write(good + "x");
  EXPECT_THAT(message(), ::testing::HasSubstr("wrong checksum"));
  std::mt19937_64 random(5);
  for (int i = 0; i < 300; ++i) {
    std::string bad = good;
    bad[random() % bad.size()] ^= static_cast<char>(1 << random() % 8);
    write(bad);
    ASSERT_NE(message(), "");
  }
}

}  // namespace
}  // namespace foretoken::kv_test::calibration
