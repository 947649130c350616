// A model in whose passes weights are swapped under the engine that runs it: what is chosen takes
// effect before the next round, as a swap at any instant does.
#pragma once

#include <functional>
#include <memory>

#include "runtime/speculate/learned.h"
#include "tests/support/model_decorator.h"

namespace foretoken::testing {

class SwappingModel final : public ModelDecorator {
 public:
  // swap: called in the first pass and in every so many after it, on the engine's thread.
  SwappingModel(std::shared_ptr<const Model> inner, int every_passes, std::function<void()> swap)
      : ModelDecorator(std::move(inner)), every_passes_(every_passes), swap_(std::move(swap)) {}
  void forward(const ForwardBatch& batch, SequenceMemory& memory, ForwardWorkspace& workspace,
               kernels::ThreadPool& pool) const override {
    if (passes_++ % every_passes_ == 0) swap_();
    inner_->forward(batch, memory, workspace, pool);
  }

 private:
  const int every_passes_;
  const std::function<void()> swap_;
  mutable int passes_ = 0;
};

// The same weights but for the fusion table, which proposes differently every time.
inline LearnedPointer disturbed(const LearnedWeights& weights, std::size_t seed) {
  auto next = std::make_shared<LearnedWeights>(weights);
  for (std::size_t i = 0; i < next->fusion.bias.size(); ++i)
    next->fusion.bias[i] += ((seed * 2654435761u + i * 40503u) >> 7) % 7 * 0.5f - 1.5f;
  ++next->version.value;
  next->initial = false;
  return next;
}

}  // namespace foretoken::testing
