#include "trainer/objective/objective.h"

#include "runtime/evaluate/fusion_replay.h"

namespace foretoken::trainer {

torch::Tensor objective(ObjectiveKind kind, const torch::Tensor& p, const torch::Tensor& log_q) {
  // -inf marks tokens that do not exist; p is 0 there, and 0 * -inf must not become NaN.
  const auto finite_log_q = log_q.clamp_min(-50.0);
  switch (kind) {
    case ObjectiveKind::kForwardKl:
      return (torch::xlogy(p, p) - p * finite_log_q).sum(1);
    case ObjectiveKind::kCrossEntropy:
      return -finite_log_q.gather(1, p.argmax(1, true)).squeeze(1);
    case ObjectiveKind::kHybrid: {
      const auto overlap = torch::minimum(p, log_q.exp()).sum(1);
      const auto share = (-kHybridDecay * overlap.detach()).exp();
      return share * (torch::xlogy(p, p) - p * finite_log_q).sum(1) + (1 - share) * (1 - overlap);
    }
    case ObjectiveKind::kOverlap:
      break;
  }
  return -torch::minimum(p, log_q.exp()).sum(1).clamp_min(kMinOverlap).log();
}

}  // namespace foretoken::trainer
