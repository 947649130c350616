// The objective of one row and its gradient, in plain C++: over a vocabulary of thousands only the
// teacher's few tokens matter, and autograd would carry whole rows for them. The same objectives as
// objective.h, where p and q are given on a few tokens and the rest of both is elsewhere.
#pragma once

#include <span>

#include "trainer/objective/objective_kind.h"

namespace foretoken::trainer {

// p, q: [n], of the same tokens, 0 where there is none; gradient: [n], with respect to log q.
// Returns the loss. A token with q = 0 has gradient 0: nothing can raise what the vocabulary lacks.
double row_objective(ObjectiveKind kind, std::span<const float> p, std::span<const float> q,
                     std::span<float> gradient);

}  // namespace foretoken::trainer
