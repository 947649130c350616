#include "runtime/model/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>

#include "foretoken/kernels/elementwise.h"

namespace foretoken {
namespace {

// `keep` of a frequency stays as it is, the rest is divided by the factor.
float mixed(double keep, double factor) { return float(1 / ((1 - keep) / factor + keep)); }

float factor_at(const LinearScaling& s, int, int, double) { return float(s.factor); }

float factor_at(const Llama3Scaling& s, int i, int rotary_dim, double theta) {
  const double frequency = std::pow(theta, -2.0 * double(i) / rotary_dim);
  const double turns = s.original_length * frequency / (2 * std::numbers::pi);
  const double keep =
      std::clamp((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0);
  return mixed(keep, s.factor);
}

float factor_at(const YarnScaling& s, int i, int rotary_dim, double theta) {
  // The index of the frequency that makes so many turns over the original length.
  const auto index_of = [&](double turns) {
    return rotary_dim * std::log(s.original_length / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  const double first = std::max(0.0, std::floor(index_of(s.beta_fast)));
  const double last = std::min(rotary_dim - 1.0, std::ceil(index_of(s.beta_slow)));
  // (.001: both may be one index.)
  return mixed(1 - std::clamp((i - first) / std::max(0.001, last - first), 0.0, 1.0), s.factor);
}

float factor_at(const LongRopeScaling& s, int i, int, double) { return s.factors[std::size_t(i)]; }

}  // namespace

std::vector<float> rope_factors(const RopeScaling& scaling, int rotary_dim, double theta) {
  return std::visit(
      [&]<class Scaling>(const Scaling& s) {
        std::vector<float> out;
        if constexpr (!std::is_same_v<Scaling, std::monostate>) {
          for (int i = 0; i < rotary_dim / 2; ++i)
            out.push_back(factor_at(s, i, rotary_dim, theta));
        }
        return out;
      },
      scaling);
}

float rope_magnitude(const RopeScaling& scaling) {
  const auto* yarn = std::get_if<YarnScaling>(&scaling);
  return yarn && yarn->factor > 1 ? float(1 + 0.1 * std::log(yarn->factor)) : 1.0f;
}

void Rope::rotation(std::int64_t offset, float* cos_sin) const {
  kernels::rope_table(offset, dim, theta, factors.empty() ? nullptr : factors.data(), cos_sin);
}

void Rope::table(std::int64_t position, float* cos_sin) const {
  rotation(position, cos_sin);
  if (magnitude == 1) return;
  for (int i = 0; i < dim; ++i) cos_sin[i] *= magnitude;
}

}  // namespace foretoken
