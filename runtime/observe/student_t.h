// Quantiles for intervals from few clusters.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

namespace foretoken {

// Two-sided 95 % of Student's t: exact at 1..10 degrees of freedom, then the expansion in 1/df
// (within .1 %).
inline double student_t_quantile(double df) {
  constexpr std::array<double, 10> kExact = {12.706, 4.303, 3.182, 2.776, 2.571,
                                             2.447,  2.365, 2.306, 2.262, 2.228};
  if (df <= 10) return kExact[static_cast<std::size_t>(std::max(1.0, std::floor(df))) - 1];
  constexpr double z = 1.959964;
  return z + (z * z * z + z) / (4 * df) +
         (5 * std::pow(z, 5) + 16 * z * z * z + 3 * z) / (96 * df * df);
}

}  // namespace foretoken
