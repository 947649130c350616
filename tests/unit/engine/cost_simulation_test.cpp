// What the engine drafts on machines that do not exist: a round costs what a script says of its
// rows, on a clock of its own, and nothing else takes time. The model, the speculators and the
// policy are the real ones, so a run is the same on any machine, however slow.
#include <gtest/gtest.h>

#include "tests/support/model_decorator.h"
#include "tests/support/simulated_clock.h"
#include "tests/unit/engine/tiny_engine.h"

namespace foretoken::testing {
namespace {

// A round of n rows costs first + (n - 1) * next, in ms.
struct Machine {
  double first_ms, next_ms;
};

class TimedModel final : public ModelDecorator {
 public:
  TimedModel(std::shared_ptr<const Model> inner, Machine machine, SimulatedClock& clock)
      : ModelDecorator(std::move(inner)), machine_(machine), clock_(clock) {}
  void forward(const ForwardBatch& batch, SequenceMemory& memory, ForwardWorkspace& workspace,
               kernels::ThreadPool& pool) const override {
    inner_->forward(batch, memory, workspace, pool);
    const double ms =
        machine_.first_ms + machine_.next_ms * static_cast<double>(batch.tokens.size() - 1);
    clock_.advance(std::chrono::nanoseconds(static_cast<std::int64_t>(1e6 * ms)));
  }

 private:
  const Machine machine_;
  SimulatedClock& clock_;
};

struct Simulated {
  std::vector<std::vector<TokenId>> outputs;
  AcceptanceStats acceptance;
  double ms = 0;       // of decoding, by the machine's clock
  double drafted = 0;  // tokens a round
};

class CostSimulation : public TinyEngine {
 protected:
  // What is drafted is always right and cheap to draft (the target is its own draft model, at a
  // twentieth of the time): whether it is worth its rows is all there is to decide.
  Simulated run(Machine machine, SpecType spec = spec_type("model")) {
    SimulatedClock clock;
    HarnessModels models = models_;
    models.model = std::make_shared<TimedModel>(models_.model, machine, clock);
    models.draft = std::make_shared<TimedModel>(models_.model, Machine{1, 0}, clock);
    models.draft_calibration = models_.calibration;
    models.clock = &clock;
    EngineOptions o = options();
    o.spec_type = spec;
    o.spec_draft_n_max = 8;
    std::vector<HarnessRequest> requests(1);
    requests[0].prompt =
        prompt(16);  // short: what a draft model has to catch up with is a price too
    requests[0].max_tokens = 600;
    HarnessResult result = run_engine(models, o, requests);
    Simulated out;
    out.outputs = std::move(result.outputs);
    out.acceptance = result.stats.acceptance;
    out.ms = result.predicted_ms[0];
    const double rounds = static_cast<double>(result.stats.acceptance.rounds);
    out.drafted = static_cast<double>(result.stats.acceptance.drafted) / std::max(1.0, rounds);
    return out;
  }
};

TEST_F(CostSimulation, WhereRowsCostNothingDraftsAreLongWhereTheyAreDearThereAreNone) {
  const Simulated plain = run({20, 0}, spec_type("none"));
  const Simulated free = run({20, 0});
  const Simulated dear = run({20, 40});
  EXPECT_EQ(free.outputs, plain.outputs);
  EXPECT_EQ(dear.outputs, plain.outputs);
  EXPECT_GT(free.drafted, 3);
  EXPECT_LT(dear.drafted, 0.3);
  EXPECT_LT(free.ms, 0.6 * plain.ms);
  EXPECT_LT(dear.ms, 1.2 * plain.ms);  // what it tried before it knew
}

TEST_F(CostSimulation, TheDearerARowTheShorterTheDrafts) {
  std::vector<double> drafted;
  for (const double next_ms : {0.0, 12.0, 40.0}) drafted.push_back(run({20, next_ms}).drafted);
  for (std::size_t i = 1; i < drafted.size(); ++i) EXPECT_LE(drafted[i], drafted[i - 1] + 0.1) << i;
}

// On a simulated clock a run repeats to the token and to the millisecond.
TEST_F(CostSimulation, ARunRepeatsExactly) {
  const Simulated first = run({20, 3}), again = run({20, 3});
  EXPECT_EQ(first.outputs, again.outputs);
  EXPECT_EQ(first.ms, again.ms);
  EXPECT_EQ(first.acceptance.drafted, again.acceptance.drafted);
  EXPECT_EQ(first.acceptance.accepted, again.acceptance.accepted);
}

}  // namespace
}  // namespace foretoken::testing
