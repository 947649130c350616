// The learner of the whole speculator: the fusion table, on fresh positions once each, and, where
// the model's vocabulary rows are at hand, the recurrent head. A snapshot is a bundle of kind
// "fusion" until the head has made its first step, then of kind "head".
#pragma once

#include "trainer/head/fusion_learner.h"
#include "trainer/head/head_learner.h"
#include "trainer/learner.h"

namespace foretoken::trainer {

struct LearnerOptions {
  FusionLearnerOptions fusion;
  HeadOptions head;
  std::shared_ptr<const VocabularyRows> model;  // null: the fusion table alone
};

LearnerFactory learner_factory(const LearnerOptions& options);

}  // namespace foretoken::trainer
