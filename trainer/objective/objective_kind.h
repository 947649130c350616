// The names of the objectives (objective.h), without torch.
#pragma once

namespace foretoken::trainer {

enum class ObjectiveKind { kOverlap, kForwardKl, kCrossEntropy };

}  // namespace foretoken::trainer
