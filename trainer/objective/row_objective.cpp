#include "trainer/objective/row_objective.h"

#include <algorithm>
#include <cmath>

namespace foretoken::trainer {
namespace {

constexpr float kMinQ = 1e-20f;  // below, logarithms are held

}  // namespace

double row_objective(ObjectiveKind kind, std::span<const float> p, std::span<const float> q,
                     std::span<float> gradient) {
  std::fill(gradient.begin(), gradient.end(), 0.0f);
  double loss = 0;
  switch (kind) {
    case ObjectiveKind::kOverlap: {
      double overlap = 0;
      for (std::size_t i = 0; i < p.size(); ++i) overlap += std::min(p[i], q[i]);
      // No floor as in log_overlap: the gradient with respect to a logit is at most 1 anyway.
      overlap = std::max(overlap, double(kMinQ));
      for (std::size_t i = 0; i < p.size(); ++i) {
        if (q[i] < p[i]) gradient[i] = static_cast<float>(-q[i] / overlap);
      }
      return -std::log(overlap);
    }
    case ObjectiveKind::kForwardKl:
      for (std::size_t i = 0; i < p.size(); ++i) {
        if (p[i] <= 0 || q[i] <= 0) continue;
        loss += double(p[i]) * std::log(double(p[i]) / std::max(q[i], kMinQ));
        gradient[i] = -p[i];
      }
      return loss;
    case ObjectiveKind::kHybrid: {
      double overlap = 0;
      for (std::size_t i = 0; i < p.size(); ++i) overlap += std::min(p[i], q[i]);
      const double share = std::exp(-kHybridDecay * overlap);
      loss = share * row_objective(ObjectiveKind::kForwardKl, p, q, gradient);
      for (std::size_t i = 0; i < p.size(); ++i) {
        gradient[i] *= static_cast<float>(share);
        if (q[i] < p[i]) gradient[i] -= static_cast<float>(1 - share) * q[i];
      }
      return loss + (1 - share) * (1 - overlap);
    }
    case ObjectiveKind::kCrossEntropy: {
      const auto top = std::size_t(std::max_element(p.begin(), p.end()) - p.begin());
      if (p.empty() || q[top] <= 0) return 0;
      gradient[top] = -1;
      return -std::log(std::max(q[top], kMinQ));
    }
  }
  return loss;
}

}  // namespace foretoken::trainer
