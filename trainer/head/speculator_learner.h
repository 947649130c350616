// The learner of the whole speculator: the fusion table, on fresh positions once each, and, where
// the model's vocabulary rows are at hand, a head: the recurrent one, or an EAGLE-3 head from a
// checkpoint on. A snapshot is a bundle of kind "fusion" until the head has made its first step,
// then of kind "head" or "eagle3".
#pragma once

#include <optional>

#include "trainer/head/eagle3_learner.h"
#include "trainer/head/fusion_learner.h"
#include "trainer/head/head_learner.h"
#include "trainer/learner/learner.h"

namespace foretoken::trainer {

struct LearnerOptions {
  FusionLearnerOptions fusion;
  HeadOptions head;
  std::optional<Eagle3LearnerOptions> eagle3;   // learned instead of the recurrent head
  std::shared_ptr<const VocabularyRows> model;  // null: the fusion table alone
};

LearnerFactory learner_factory(const LearnerOptions& options);

}  // namespace foretoken::trainer
