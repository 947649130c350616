// The names of the objectives (objective.h), without torch.
#pragma once

namespace foretoken::trainer {

inline constexpr double kHybridDecay = 3;

enum class ObjectiveKind { kOverlap, kForwardKl, kCrossEntropy, kHybrid };

}  // namespace foretoken::trainer
