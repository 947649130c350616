// The learner of the whole speculator: the fusion table, on fresh positions once each.
#pragma once

#include "trainer/head/fusion_learner.h"
#include "trainer/learner.h"

namespace foretoken::trainer {

struct LearnerOptions {
  FusionLearnerOptions fusion;
};

LearnerFactory learner_factory(const LearnerOptions& options);

}  // namespace foretoken::trainer
