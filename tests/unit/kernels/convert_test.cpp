// Blocks of learned weights, against the file format's own decoder.
#include "foretoken/kernels/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "foretoken/kernels/linear.h"

namespace foretoken::kernels {
namespace {

constexpr std::int64_t kValues = 32 * 64;

std::vector<float> normals(float deviation) {
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> x(kValues);
  for (float& v : x) v = normal(random);
  return x;
}
std::vector<std::byte> q4_of(const std::vector<float>& x) {
  std::vector<std::byte> blocks(x.size() / 32 * 18);
  quantize_q4_0(x.data(), std::int64_t(x.size()), blocks.data());
  return blocks;
}
std::vector<float> back(const std::vector<std::byte>& blocks) {
  std::vector<float> x(blocks.size() / 18 * 32);
  dequantize_file_row(WeightType::kQ4_0, blocks.data(), std::int64_t(x.size()), x.data());
  return x;
}

// A step that meets the largest value with its eighth leaves 1.2 times the error.
TEST(Q4Blocks, AreNearerThanThoseOfTheLargestValue) {
  const std::vector<float> x = normals(0.02f), y = back(q4_of(x));
  double error = 0, plain = 0, squares = 0;
  for (std::size_t b = 0; b < x.size(); b += 32) {
    float largest = 0;
    for (std::size_t i = b; i < b + 32; ++i)
      if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
    const float step = largest / -8;
    for (std::size_t i = b; i < b + 32; ++i) {
      const float code = std::min(7.0f, std::max(-8.0f, std::round(x[i] / step)));
      plain += std::pow(double(x[i] - code * step), 2);
      error += std::pow(double(x[i] - y[i]), 2);
      squares += std::pow(double(x[i]), 2);
    }
  }
  EXPECT_LT(error, 0.9 * plain);
  EXPECT_LT(std::sqrt(error / squares), 0.09);
}

TEST(Q4Blocks, ComeBackAsTheyAre) {
  const auto blocks = q4_of(normals(3));
  EXPECT_EQ(q4_of(back(blocks)), blocks);
}

TEST(Q4Blocks, ZerosAndWhatFp16CannotHoldAreFinite) {
  for (const float value : {0.0f, 1e-12f, 1e30f, -1e30f}) {
    std::vector<float> x(32, value);
    for (const float v : back(q4_of(x))) {
      EXPECT_TRUE(std::isfinite(v)) << value;
      if (value == 0) {
        EXPECT_EQ(v, 0);
      }
    }
  }
}

}  // namespace
}  // namespace foretoken::kernels
