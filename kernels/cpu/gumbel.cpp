#include "gumbel.h"

#include <bit>

namespace foretoken::kernels {

double log_double(double x) {
  auto bits = std::bit_cast<std::uint64_t>(x);
  int e = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++e;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double p = 1.0 / 21;
  p = p * z + 1.0 / 19;
  p = p * z + 1.0 / 17;
  p = p * z + 1.0 / 15;
  p = p * z + 1.0 / 13;
  p = p * z + 1.0 / 11;
  p = p * z + 1.0 / 9;
  p = p * z + 1.0 / 7;
  p = p * z + 1.0 / 5;
  p = p * z + 1.0 / 3;
  // ln 2 in two parts, the first with 21 zero bits at its end, so that e * high is exact.
  constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  const double n = e;
  return n * kLn2High + (2.0 * s + (2.0 * s * z * p + n * kLn2Low));
}

double gumbel_of_word(std::uint32_t word) {
  const double u = (static_cast<double>(word) + 0.5) * 0x1p-32;
  return -log_double(-log_double(u));
}

float gumbel_bound(std::uint32_t word) {
  const float c = static_cast<float>(~word) + 0.5f;
  const std::int32_t bits = std::bit_cast<std::int32_t>(c) - 0x3f800000;
  const float log2_below = static_cast<float>(bits) * 0x1p-23f;
  return (32.0f - log2_below) * 0.69314724f + 1e-3f;
}

}  // namespace foretoken::kernels
