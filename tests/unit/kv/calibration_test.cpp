// The paired transform on synthetic moments, and its file as hostile input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "runtime/kv/calibration.h"
#include "runtime/kv/kv_cache.h"
#include "tests/unit/kv/synthetic.h"

namespace foretoken::kv_test {
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
    for (int l = 0; l < kGeometry.n_layers; ++l)
      calibrator->observe(l, 256, q.data(), k.data(), v.data());
  }
  const auto wo = normal(48 * 4 * 32, source.random);
  for (int l = 0; l < kGeometry.n_layers; ++l) calibrator->observe_output_matrix(l, wo.data(), 48);
  return calibrator->solve(nullptr);
}

// Root mean square error of q . k through a sealed page of fresh rows, relative to q . (k - mean).
double logit_error(Source& source, const kernels::KvTransform& transform) {
  const int d = kGeometry.head_dim;
  std::vector<std::byte> hot(kernels::hot_page_bytes(d)), sealed(kernels::sealed_page_bytes(d));
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
    kernels::seal_page(hot.data(), transform, d, sealed.data());
    kernels::dequantize_sealed_page(sealed.data(), transform, d, decoded.data(), values.data());
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
  EXPECT_GT(logit_error(source, KvCalibration::hadamard(kGeometry)->layer(KvMode::kInt2, 1)[1]), 10 * ours);
  EXPECT_GT(logit_error(source, KvCalibration::naive(kGeometry)->layer(KvMode::kInt2, 1)[1]), 10 * ours);
  EXPECT_GT(logit_error(source, KvCalibration::data_free(kGeometry)->layer(KvMode::kInt2, 1)[1]), 1.5 * ours);
}

TEST(KvCalibration, EncodingAndDecodingAreInverse) {
  Source source;
  const auto paired = calibrated(source);
  const int d = kGeometry.head_dim;
  for (int h = 0; h < 2; ++h) {
    const kernels::KvTransform& t = paired->layer(KvMode::kInt2, 0)[h];
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        double k = 0, v = 0;
        for (int c = 0; c < d; ++c) {
          if (c < d - t.k_n4) k += double(t.k_encode[i * d + c]) * t.k_query[j * d + t.k_n4 + c];
          if (c < d - t.v_n4) v += double(t.v_encode[i * d + c]) * t.v_decode[(t.v_n4 + c) * d + j];
        }
        // Without dropped channels the product is the identity; with them, a projection: its trace
        // tells.
        if (t.k_n4 == 0) {
          EXPECT_NEAR(k, i == j, 1e-3);
        }
        if (t.v_n4 == 0) {
          EXPECT_NEAR(v, i == j, 1e-3);
        }
      }
    }
    double trace = 0;
    for (int i = 0; i < d; ++i) {
      for (int c = 0; c < d - t.k_n4; ++c)
        trace += double(t.k_encode[i * d + c]) * t.k_query[i * d + t.k_n4 + c];
    }
    EXPECT_NEAR(trace, d - t.k_n4, 1e-2);
  }
}

class KvCalibrationFile : public testing::Test {
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
  for (int l = 0; l < 2; ++l) {
    for (int h = 0; h < 2; ++h) {
      const auto &a = made->layer(KvMode::kInt2, l)[h], &b = (*loaded)->layer(KvMode::kInt2, l)[h];
      EXPECT_EQ(a.k_n4, b.k_n4);
      EXPECT_EQ(a.v_n4, b.v_n4);
      for (const auto& [x, y] : {std::pair{a.k_encode, b.k_encode},
                                 {a.k_query, b.k_query},
                                 {a.v_encode, b.v_encode},
                                 {a.v_decode, b.v_decode}}) {
        EXPECT_EQ(0, std::memcmp(x, y, d * d * 4));
      }
      EXPECT_EQ(0, std::memcmp(a.v_mean, b.v_mean, d * 4));
      EXPECT_EQ(0, std::memcmp(a.k_weight, b.k_weight, d * 4));
    }
  }
}

TEST_F(KvCalibrationFile, EveryKindOfDamageIsAClearError) {
  EXPECT_THAT(message(), testing::HasSubstr("no such file"));
  ASSERT_TRUE(KvCalibration::data_free(kGeometry)->save(path_, fingerprint_));
  const std::string good = read();
  EXPECT_EQ(message(), "");
  fingerprint_[3] ^= 1;
  EXPECT_THAT(message(), testing::HasSubstr("another model"));
  fingerprint_[3] ^= 1;
  KvGeometry other = kGeometry;
  other.head_dim = 64;
  EXPECT_THAT(message(other), testing::HasSubstr("wanted 2, 4, 2 of 64"));
  for (const std::size_t size : {std::size_t{0}, std::size_t{7}, std::size_t{55}, std::size_t{64},
                                 good.size() / 2, good.size() - 1}) {
    write(good.substr(0, size));
    EXPECT_NE(message(), "") << size;
  }
  write(good + "x");
  EXPECT_THAT(message(), testing::HasSubstr("wrong checksum"));
  std::mt19937_64 random(5);
  for (int i = 0; i < 300; ++i) {
    std::string bad = good;
    bad[random() % bad.size()] ^= static_cast<char>(1 << random() % 8);
    write(bad);
    ASSERT_NE(message(), "");
  }
}

}  // namespace
}  // namespace foretoken::kv_test
