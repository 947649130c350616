// What the trainers of all heads share: the steps of a schedule, worked off in slices, and the sums
// of the step under way. A head's own trainer says what a request offers, makes the gradients of a
// slice and takes the optimiser's step. No torch. One thread. Deterministic.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "runtime/model/vocabulary_rows.h"
#include "trainer/examples/step_schedule.h"
#include "trainer/learner/head_trainer.h"

namespace foretoken::trainer {

class StepTrainer : public HeadTrainer {
 public:
  bool work(std::size_t fresh_waiting) final;
  void judged(std::int64_t trained_tokens, bool gained) final {
    schedule_.judged(trained_tokens, gained);
  }
  bool trained() const final { return step_ > 0; }
  std::int64_t step() const final { return step_; }
  double loss() const final { return loss_.value; }
  std::int64_t chains() const final { return chains_; }

 protected:
  // name: of its arrays in a state, and in errors.
  StepTrainer(std::string name, const StepOptions& options,
              std::shared_ptr<const VocabularyRows> model, const TraceSource& source);

  virtual bool ready() { return true; }  // before a step; false: none can be made yet
  virtual std::optional<Piece> starts(std::uint64_t sequence) = 0;  // nullopt: nothing
  // Gradients of the next chains of the step's; adds to the sums below and to chains_.
  virtual void slice() = 0;
  // The step itself, on the mean over the step's positions, weights included.
  virtual void end_step() = 0;

  double warmup() const { return std::min(1.0, double(step_) / warmup_steps_); }
  // The figures above and the schedule.
  void save_steps(StateMap& map) const;
  bool restore_steps(const StateMap& map);
  Error wrong(const char* what) const;

  const std::string name_;
  const std::shared_ptr<const VocabularyRows> model_;
  const TraceSource& source_;
  StepSchedule schedule_;
  std::vector<double> step_weights_;  // of each step of a chain
  std::int64_t step_ = 0, chains_ = 0;
  double step_loss_ = 0, step_weight_ = 0;  // of the step under way
  SmoothedLoss loss_;                       // of the steps taken

 private:
  const int warmup_steps_;
};

}  // namespace foretoken::trainer
