// The online learner of an EAGLE-3 head: from a published checkpoint on, on the same requests, in
// the same order and with the same objective as the recurrent head's (head_learner.h), and served
// and exported under the checkpoint's own names and types. Each step unrolls a few hundred chains
// over the head's own states ("training-time test"), each chain over the sequence's true rows; all
// parameters learn, lm_head included, the draft vocabulary and the embedding stay. Requests whose
// hidden states are of other layers than the head reads teach nothing. No torch in this header. One
// thread. Deterministic.
#pragma once

#include <memory>

#include "runtime/model/vocabulary_rows.h"
#include "runtime/speculate/head/eagle3_checkpoint.h"
#include "trainer/examples/step_schedule.h"
#include "trainer/learner/head_trainer.h"

namespace foretoken::trainer {

struct Eagle3LearnerOptions : StepOptions {
  // Published heads are fine-tuned at 1e-5 to 1e-4 on millions of tokens; here there are thousands.
  Eagle3LearnerOptions() { learning_rate = 1e-4; }
  Eagle3Checkpoint start;  // eagle3_parts() has found it good
  // Rows before a slice's first chain that its attention sees, of the 256 when it serves: the
  // nearest ones weigh most, and each costs as much as a chain's first step.
  std::int64_t context_rows = 96;
};

std::unique_ptr<HeadTrainer> make_eagle3_learner(const Eagle3LearnerOptions& options,
                                                 std::shared_ptr<const VocabularyRows> model,
                                                 const TraceSource& source);

}  // namespace foretoken::trainer
