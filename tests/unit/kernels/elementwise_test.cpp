#include "foretoken/kernels/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>

#include "fixtures.h"

namespace foretoken::kernels {
namespace {

// Runs fn on every instruction set and demands the scalar reference's bits.
template <class Fn>
std::vector<float> same_on_every_isa(Fn fn) {
  std::vector<float> reference;
  for (Isa isa : supported_isas()) {
    const ScopedIsa scoped(isa);
    const std::vector<float> y = fn();
    if (isa == Isa::kScalar) reference = y;
    EXPECT_EQ(0, std::memcmp(y.data(), reference.data(), y.size() * 4)) << isa_name(isa);
  }
  return reference;
}

TEST(RmsNorm, MatchesItsDefinitionForStridesAndOddWidths) {
  std::mt19937_64 random(1);
  for (const std::int64_t width : {1, 7, 16, 33, 64, 576, 1537}) {
    const std::int64_t n_rows = 3, stride = width + 2;
    const std::vector<float> x = random_activations(n_rows, stride, random);
    const std::vector<float> weight = random_activations(1, width, random);
    const auto y = same_on_every_isa([&] {
      std::vector<float> out(static_cast<std::size_t>(n_rows * width));
      rms_norm(x.data(), stride, weight.data(), 1e-5f, n_rows, width, out.data(), width);
      return out;
    });
    const auto in_place = same_on_every_isa([&] {
      std::vector<float> out = x;
      rms_norm(out.data(), stride, weight.data(), 1e-5f, n_rows, width, out.data(), stride);
      return out;
    });
    for (std::int64_t r = 0; r < n_rows; ++r) {
      double sum = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        const double v = x[static_cast<std::size_t>(r * stride + i)];
        sum += v * v;
      }
      const double scale = 1 / std::sqrt(sum / static_cast<double>(width) + 1e-5);
      for (std::int64_t i = 0; i < width; ++i) {
        const double expected = x[static_cast<std::size_t>(r * stride + i)] * scale *
                                weight[static_cast<std::size_t>(i)];
        EXPECT_NEAR(y[static_cast<std::size_t>(r * width + i)], expected,
                    1e-6 + 2e-6 * std::fabs(expected));
        EXPECT_EQ(y[static_cast<std::size_t>(r * width + i)],
                  in_place[static_cast<std::size_t>(r * stride + i)]);
      }
    }
  }
}

// The order of the sum is part of the arithmetic: 128 partial sums, folded halves onto halves. A
// plain sum in order must differ somewhere, or this test sees nothing.
TEST(RmsNorm, SumsIn128PartialSums) {
  std::mt19937_64 random(7);
  bool plain_differs = false;
  for (const std::int64_t width : {1, 17, 64, 127, 128, 129, 576, 1000, 4096}) {
    const std::vector<float> x = random_activations(1, width, random);
    const std::vector<float> one(static_cast<std::size_t>(width), 1.0f);
    float partial[128] = {}, plain = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      const float v = x[static_cast<std::size_t>(i)];
      partial[i % 128] += v * v;
      plain += v * v;
    }
    for (int half = 64; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) partial[i] += partial[i + half];
    plain_differs = plain_differs || plain != partial[0];
    const float scale = 1.0f / std::sqrt(partial[0] / static_cast<float>(width) + 1e-5f);
    const auto y = same_on_every_isa([&] {
      std::vector<float> out(static_cast<std::size_t>(width));
      rms_norm(x.data(), width, one.data(), 1e-5f, 1, width, out.data(), width);
      return out;
    });
    for (std::size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i], x[i] * scale) << width;
  }
  EXPECT_TRUE(plain_differs);
}

TEST(Swiglu, MatchesItsDefinitionAtEverySize) {
  std::mt19937_64 random(2);
  for (const std::int64_t n : {1, 15, 16, 17, 1000}) {
    std::vector<float> gate = random_activations(1, n, random),
                       up = random_activations(1, n, random);
    if (n == 1000) {
      const float extremes[] = {0.0f, -0.0f, 88.0f, -88.0f, 1e30f, -1e30f, -20.0f, 20.0f};
      std::memcpy(gate.data(), extremes, sizeof extremes);
      for (std::size_t i = 0; i < 8; ++i) up[i] = 0.5f;
    }
    const auto y = same_on_every_isa([&] {
      std::vector<float> out(static_cast<std::size_t>(n));
      swiglu(gate.data(), up.data(), n, out.data());
      return out;
    });
    for (std::size_t i = 0; i < y.size(); ++i) {
      const double g = gate[i], expected = g / (1 + std::exp(-g)) * up[i];
      EXPECT_NEAR(y[i], expected, 1e-6 * std::fabs(expected) + 1e-30) << g;
    }
    std::vector<float> aliased = gate;
    swiglu(aliased.data(), up.data(), n, aliased.data());
    EXPECT_EQ(aliased, y);
  }
}

TEST(Rope, RotatesPairsByTheTablesAngles) {
  std::mt19937_64 random(3);
  for (const bool interleaved : {false, true}) {
    const int n_heads = 3, head_dim = 64, rotary_dim = 48;
    const std::vector<float> x = random_activations(n_heads, head_dim, random);
    std::vector<float> factors(rotary_dim / 2, 2.0f), table(rotary_dim);
    rope_table(1234, rotary_dim, 10000.0f, factors.data(), table.data());
    const auto y = same_on_every_isa([&] {
      std::vector<float> out = x;
      rope(out.data(), n_heads, head_dim, rotary_dim, table.data(), interleaved);
      return out;
    });
    for (int h = 0; h < n_heads; ++h) {
      for (int i = 0; i < rotary_dim / 2; ++i) {
        const double angle = 1234 * std::pow(10000.0, -2.0 * i / rotary_dim) / 2;
        const int first = h * head_dim + (interleaved ? 2 * i : i);
        const int second = first + (interleaved ? 1 : rotary_dim / 2);
        const double a = x[static_cast<std::size_t>(first)],
                     b = x[static_cast<std::size_t>(second)];
        EXPECT_NEAR(y[static_cast<std::size_t>(first)], a * std::cos(angle) - b * std::sin(angle),
                    1e-4);
        EXPECT_NEAR(y[static_cast<std::size_t>(second)], a * std::sin(angle) + b * std::cos(angle),
                    1e-4);
      }
      for (int i = h * head_dim + rotary_dim; i < (h + 1) * head_dim; ++i)
        EXPECT_EQ(x[static_cast<std::size_t>(i)], y[static_cast<std::size_t>(i)]);
    }
  }
}

TEST(SoftmaxWeights, MatchTheirDefinitionAtEverySizeOnEveryIsa) {
  std::mt19937_64 random(6);
  for (const std::int64_t n : {0, 1, 5, 16, 31, 257}) {
    std::vector<float> x = random_activations(1, n, random);
    if (n > 0) x[0] = -1e30f;  // far below: nothing
    float largest = n > 0 ? x[0] : 0;
    for (const float v : x) largest = std::max(largest, v);
    const float scale = 0.3f;
    const auto y = same_on_every_isa([&] {
      std::vector<float> out = x;
      softmax_weights(out.data(), n, largest, scale);
      return out;
    });
    for (std::int64_t i = 0; i < n; ++i) {
      const double exponent =
          static_cast<double>((x[static_cast<std::size_t>(i)] - largest) * scale);
      const double expected = exponent < -87 ? 0 : std::exp(exponent);
      EXPECT_NEAR(y[static_cast<std::size_t>(i)], expected, 1e-6 * expected) << exponent;
    }
  }
}

TEST(Add, AddsInPlace) {
  std::mt19937_64 random(4);
  const std::vector<float> x = random_activations(1, 101, random),
                           y0 = random_activations(1, 101, random);
  const auto y = same_on_every_isa([&] {
    std::vector<float> out = y0;
    add(x.data(), 101, out.data());
    return out;
  });
  for (std::size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i], x[i] + y0[i]);
}

}  // namespace
}  // namespace foretoken::kernels
