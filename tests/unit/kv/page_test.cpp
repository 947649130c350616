// Pages: what is stored comes back, and sealing gives the same bytes on every ISA.
#include <gtest/gtest.h>

#include <limits>

#include "tests/unit/kv/synthetic.h"

namespace foretoken::kv_test {
namespace {

using kernels::KvTransform;
using kernels::Isa;

constexpr int kHeadDims[] = {16, 64, 80, 96, 128, 256};

std::vector<std::byte> random_hot_page(int d, std::mt19937_64& random, float deviation = 1,
                                       float bias = 3) {
  std::vector<std::byte> page(kernels::hot_page_bytes(d));
  const std::vector<float> mean = normal(d, random, bias);
  for (int t = 0; t < kPageTokens; ++t) {
    auto k = normal(d, random, deviation), v = normal(d, random, deviation);
    for (int c = 0; c < d; ++c) k[c] += mean[c];
    kernels::store_kv(page.data(), d, t, k.data(), v.data());
  }
  return page;
}

TEST(KvPage, Sizes) {
  EXPECT_EQ(kernels::sealed_page_bytes(128), 4608u);
  EXPECT_EQ(kernels::sealed_page_bytes(64), 2432u);
  EXPECT_EQ(kernels::hot_page_bytes(128), 32768u);
}

TEST(KvPage, StoresBf16NearestAndNothingThatIsNotFinite) {
  constexpr int d = 64;
  std::mt19937_64 random(1);
  std::vector<std::byte> page(kernels::hot_page_bytes(d), std::byte{0xff});
  std::vector<std::vector<float>> k(kPageTokens), v(kPageTokens);
  for (int t = 0; t < kPageTokens; ++t) {
    k[t] = normal(d, random, 5), v[t] = normal(d, random, 5);
    kernels::store_kv(page.data(), d, t, k[t].data(), v[t].data());
  }
  std::vector<float> got(d);
  for (int t = 0; t < kPageTokens; ++t) {
    kernels::load_k(page.data(), d, t, got.data());
    for (int c = 0; c < d; ++c)
      ASSERT_LE(std::abs(got[c] - k[t][c]), std::abs(k[t][c]) / 256) << t << " " << c;
    kernels::load_v(page.data(), d, t, got.data());
    for (int c = 0; c < d; ++c)
      ASSERT_LE(std::abs(got[c] - v[t][c]), std::abs(v[t][c]) / 256) << t << " " << c;
  }
  std::vector<float> odd(d, 1);
  odd[0] = std::numeric_limits<float>::quiet_NaN();
  odd[1] = std::numeric_limits<float>::infinity();
  odd[2] = -std::numeric_limits<float>::infinity();
  odd[3] = std::numeric_limits<float>::max();
  odd[4] = 1 + 1.0f / 256;  // a tie: to even
  odd[5] = 1 + 3.0f / 256;
  kernels::store_kv(page.data(), d, 7, odd.data(), odd.data());
  for (auto load : {kernels::load_k, kernels::load_v}) {
    load(page.data(), d, 7, got.data());
    EXPECT_EQ(got[0], 0);
    EXPECT_TRUE(std::isfinite(got[1]) && got[1] > 3e38f);
    EXPECT_TRUE(std::isfinite(got[2]) && got[2] < -3e38f);
    EXPECT_TRUE(std::isfinite(got[3]));
    EXPECT_EQ(got[4], 1.0f);
    EXPECT_EQ(got[5], 1 + 4.0f / 256);
  }
}

TEST(KvPage, SealedBytesAreEqualOnEveryIsa) {
  std::mt19937_64 random(2);
  for (const int d : kHeadDims) {
    for (const int sixteenths : {0, 1, 3, 6}) {
      OwnedTransform owned(d, sixteenths * d / 16, (6 - sixteenths) * d / 16, random);
      for (const float deviation : {1.0f, 1e-20f, 30.0f, 1e30f, 0.0f}) {
        for (const bool max_scale : {false, true}) {
          owned.view.max_scale = max_scale;
          owned.view.k_page_mean = !max_scale;
          const auto hot = random_hot_page(d, random, deviation, deviation == 0 ? 0 : 3);
          std::vector<std::byte> want;
          for (const Isa isa : kernels::supported_isas()) {
            ScopedIsa scope(isa);
            std::vector<std::byte> sealed(kernels::sealed_page_bytes(d), std::byte{0xa5});
            kernels::seal_page(hot.data(), owned.view, d, sealed.data());
            if (want.empty()) want = sealed;
            ASSERT_EQ(0, std::memcmp(want.data(), sealed.data(), sealed.size()))
                << kernels::isa_name(isa) << " d " << d << " n4 " << sixteenths << " deviation "
                << deviation;
          }
        }
      }
    }
  }
}

// Unit Gaussian channels: two bits leave .119 of the energy, mixed classes what theory says (Max
// 1960).
TEST(KvPage, ErrorIsWhatTheoryPredicts) {
  std::mt19937_64 random(3);
  constexpr int d = 128;
  for (const int n4 : {0, 8, 32}) {
    OwnedTransform owned(d, n4, n4, random);
    // Rows drawn in channels with the deviations that the steps assume, put through the inverse.
    double error = 0, norm = 0;
    for (int page = 0; page < 6; ++page) {
      std::vector<std::byte> hot(kernels::hot_page_bytes(d)), sealed(kernels::sealed_page_bytes(d));
      std::vector<float> v_true(kPageTokens * d);
      for (int t = 0; t < kPageTokens; ++t) {
        const auto channel = normal(d, random);
        std::vector<float> v(owned.v_mean);
        for (int i = 0; i < d; ++i) {
          const float units =
              channel[i] / (i < n4 ? 0.3352f : 0.9957f) * (i >= d - n4 ? 0.0f : 1.0f);
          const int digit = i < n4 ? n4 + i : n4 + i;  // the digit of weight 1
          if (digit >= d) continue;
          for (int j = 0; j < d; ++j) v[j] += units * owned.v_decode[digit * d + j];
        }
        std::copy(v.begin(), v.end(), v_true.begin() + t * d);
        kernels::store_kv(hot.data(), d, t, v.data(), v.data());
      }
      kernels::seal_page(hot.data(), owned.view, d, sealed.data());
      std::vector<float> k(kPageTokens * d), v(kPageTokens * d);
      kernels::dequantize_sealed_page(sealed.data(), owned.view, d, k.data(), v.data());
      for (int i = 0; i < kPageTokens * d; ++i) {
        error += std::pow(v[i] - v_true[i], 2);
        norm += std::pow(v_true[i] - owned.v_mean[i % d], 2);
      }
    }
    // Energy by class, with the fixture's falling deviations.
    double want = 0, energy = 0;
    for (int i = 0; i < d - n4; ++i) {
      const double e = std::exp(-3.0 * i / d);
      want += e * (i < n4 ? 0.01154 : 0.1188);
      energy += e;
    }
    EXPECT_NEAR(std::sqrt(error / norm), std::sqrt(want / energy), 0.03) << n4;
  }
}

TEST(KvPage, ControlsDoWhatTheyAreNamedFor) {
  std::mt19937_64 random(4);
  constexpr int d = 64;
  OwnedTransform owned(d, 0, 0, random);
  const auto hot = random_hot_page(d, random, 1, 30);
  const auto error = [&] {
    std::vector<std::byte> sealed(kernels::sealed_page_bytes(d));
    kernels::seal_page(hot.data(), owned.view, d, sealed.data());
    std::vector<float> k(kPageTokens * d), v(kPageTokens * d), want(d);
    kernels::dequantize_sealed_page(sealed.data(), owned.view, d, k.data(), v.data());
    double sum = 0;
    for (int t = 0; t < kPageTokens; ++t) {
      kernels::load_k(hot.data(), d, t, want.data());
      for (int c = 0; c < d; ++c) sum += std::pow(k[t * d + c] - want[c], 2);
    }
    return std::sqrt(sum / (kPageTokens * d));
  };
  const double paired = error();
  owned.view.k_page_mean = false;
  const double without_mean = error();
  EXPECT_LT(paired, 0.8);
  EXPECT_GT(without_mean, 5 * paired);  // a bias of 30 is what the page mean is for
}

}  // namespace
}  // namespace foretoken::kv_test
