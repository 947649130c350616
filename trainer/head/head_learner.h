// The online learner of the recurrent head: steps of about 270 chains, fresh requests once, then
// replays drawn uniformly from the whole buffer; AdamW, and the moving average that is served. The
// recipe and its figures: README, "Recipe". No torch in this header. One thread. Deterministic: the
// same requests in the same order from the same state give the same weights.
#pragma once

#include <memory>
#include <optional>

#include "runtime/model/vocabulary_rows.h"
#include "trainer/examples/step_schedule.h"
#include "trainer/learner/head_trainer.h"

namespace foretoken::trainer {

struct HeadOptions : StepOptions {
  std::int64_t inner = 0;       // 0: 512 where the target's hidden width is below 768, else 1536
  std::int64_t vocabulary = 0;  // 0: 4096 or 8192, by the same
  double table_learning_rate = 0.02;  // of the candidates' biases, fresh positions only
  // Of the gain, as a share of itself: it begins at a tenth, so that the head begins as its
  // candidates do, and has a factor of twenty to go; at the others' rate it would never get there.
  double gain_learning_rate = 0.06;
  // Of a position where a draft was refused, beside others.
  double refused_weight = 1;
  int chains_per_fast_slice = 135;                   // where products are in bf16
  std::optional<bool> bf16;                          // products in bf16; unset: where they are fast
  std::size_t cache_bytes = std::size_t{256} << 20;  // decoded features in memory
};

std::unique_ptr<HeadTrainer> make_head_learner(const HeadOptions& options,
                                               std::shared_ptr<const VocabularyRows> model,
                                               const TraceSource& source);

}  // namespace foretoken::trainer
