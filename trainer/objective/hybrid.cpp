// hybrid: l KL + (1 - l) (1 - a), a the overlap, l = exp(-3 a) held fixed in the gradient: the
// divergence while little is accepted, total variation once much is. The LK loss of arXiv
// 2602.23881.
#include <algorithm>
#include <cmath>

#include "trainer/objective/objective.h"

namespace foretoken::trainer {

double forward_kl_loss(std::span<const float> p, std::span<const float> q,
                       std::span<float> gradient);

double hybrid_loss(std::span<const float> p, std::span<const float> q, std::span<float> gradient) {
  double overlap = 0;
  for (std::size_t i = 0; i < p.size(); ++i) overlap += std::min(p[i], q[i]);
  const double share = std::exp(-3 * overlap);
  const double loss = share * forward_kl_loss(p, q, gradient);
  for (std::size_t i = 0; i < p.size(); ++i) {
    gradient[i] *= static_cast<float>(share);
    if (q[i] < p[i]) gradient[i] -= static_cast<float>(1 - share) * q[i];
  }
  return loss + (1 - share) * (1 - overlap);
}

}  // namespace foretoken::trainer
