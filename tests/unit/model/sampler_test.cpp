// The target's filters, against their definitions.
#include "runtime/model/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>

namespace foretoken {
namespace {

TEST(SamplerFilters, AgreeWithTheirDefinitions) {
  constexpr int kVocab = 500;
  std::vector<float> logits(kVocab);
  for (int i = 0; i < kVocab; ++i) logits[std::size_t(i)] = float(std::sin(i * 12.9898) * 4.0);
  Sampler sampler(kVocab);
  // Mass by brute force in the order Sampler applies them: top-k, then top-p over what is left,
  // then min-p.
  for (const auto& [k, p, m] : std::vector<std::tuple<int, float, float>>{{0, 0.9f, 0.0f},
                                                                          {50, 1.0f, 0.0f},
                                                                          {50, 0.7f, 0.0f},
                                                                          {0, 1.0f, 0.05f},
                                                                          {40, 0.9f, 0.1f},
                                                                          {0, 0.999f, 0.01f}}) {
    SamplingParams params;
    params.temperature = 0.7f;
    params.top_k = k;
    params.top_p = p;
    params.min_p = m;
    std::vector<std::pair<double, int>> order;
    for (int i = 0; i < kVocab; ++i) order.emplace_back(-double(logits[std::size_t(i)]), i);
    std::sort(order.begin(), order.end());
    if (k > 0) order.resize(std::size_t(k));
    double z = 0;
    for (auto& [l, i] : order) z += std::exp(-l / 0.7);
    std::vector<int> kept;
    double mass = 0;
    for (auto& [l, i] : order) {
      if (p < 1 && mass >= p) break;
      mass += std::exp(-l / 0.7) / z;
      kept.push_back(i);
    }
    std::erase_if(kept, [&](int i) {
      return m > 0 &&
             std::exp((double(logits[std::size_t(i)]) - double(logits[std::size_t(kept[0])])) /
                      0.7) < m;
    });
    std::vector<float> row = logits;
    sampler.prepare(row.data(), params, nullptr);
    for (int i = 0; i < kVocab; ++i) {
      const bool in = std::find(kept.begin(), kept.end(), i) != kept.end();
      EXPECT_EQ(std::isfinite(sampler.logprob(i)), in)
          << "token " << i << " k " << k << " p " << p << " m " << m;
    }
  }
}

}  // namespace
}  // namespace foretoken
