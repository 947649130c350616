#include "trainer/head/step_trainer.h"

#include <cmath>

namespace foretoken::trainer {

StepTrainer::StepTrainer(std::string name, const StepOptions& options,
                         std::shared_ptr<const VocabularyRows> model, const TraceSource& source)
    : name_(std::move(name)),
      model_(std::move(model)),
      source_(source),
      schedule_(options, source),
      warmup_steps_(options.warmup_steps) {
  for (int s = 0; s < options.unroll; ++s)
    step_weights_.push_back(std::pow(options.step_weight, s));
}

bool StepTrainer::work(std::size_t fresh_waiting) {
  if (!schedule_.under_way()) {
    if (!ready()) return false;
    step_loss_ = step_weight_ = 0;
    if (!schedule_.begin(fresh_waiting, [this](std::uint64_t s) { return starts(s); }))
      return false;
  }
  slice();
  if (!schedule_.under_way() && step_weight_ > 0) {
    schedule_.end();
    end_step();
  }
  return true;
}

void StepTrainer::save_steps(StateMap& map) const {
  map.put_one(name_ + ".chains", chains_);
  map.put_one(name_ + ".step", step_);
  map.put_one(name_ + ".loss", loss_.value);
  schedule_.save(map, name_);
}

bool StepTrainer::restore_steps(const StateMap& map) {
  chains_ = map.get_one<std::int64_t>(name_ + ".chains", 0);
  step_ = map.get_one<std::int64_t>(name_ + ".step", 0);
  loss_.value = map.get_one<double>(name_ + ".loss", 0);
  return schedule_.restore(map, name_);
}

Error StepTrainer::wrong(const char* what) const {
  return {ErrorCode::kInvalidInput, "learner state: " + name_ + ": " + what};
}

}  // namespace foretoken::trainer
