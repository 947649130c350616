#include "tests/simulation/sim_learner.h"

#include <cstdlib>

#include "trainer/speculator_learner.h"

namespace foretoken::trainer {

// The real learner needs LibTorch, which is not linked here; every session of a simulation is given
// one of its own.
LearnerFactory learner_factory(const LearnerOptions&) { std::abort(); }

}  // namespace foretoken::trainer
