// The online learner of the recurrent head: steps of about 270 chains, fresh requests once, then
// replays drawn uniformly from the whole buffer; AdamW, and the moving average that is served. The
// recipe and its figures: README, "Recipe". No torch in this header. One thread. Deterministic: the
// same requests in the same order from the same state give the same weights.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

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

class HeadLearner final : public HeadTrainer {
 public:
  HeadLearner(const HeadOptions& options, std::shared_ptr<const VocabularyRows> model,
              const TraceSource& source);
  ~HeadLearner() override;

  void observe(std::uint64_t sequence, const RequestTrace& trace) override;
  bool work(std::size_t fresh_waiting) override;
  void judged(std::int64_t trained_tokens, bool gained) override;
  bool trained() const override;
  void add_to(Bundle& bundle) const override;
  std::int64_t step() const override;
  double loss() const override;
  std::int64_t chains() const override;
  void save(StateMap& map) const override;
  Status restore(const StateMap& map) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken::trainer
