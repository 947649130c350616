// Draft lengths by measured cost: of all drafted tokens of a round, verify those that earn their
// row.
//   maximise  sum_r sum_{j <= k_r} survival(r, j)  -  rate * T(n + sum_r k_r)     over k_r >= 0
//   survival(r, j) = product of the calibrated confidences of r's first j drafted tokens
//   rate = tokens per unit of cost under the policy itself, at this number of sequences, at least
//   that of
//          not speculating: the price of time in a renewal-reward process (Dinkelbach's parameter),
//          so the policy's fixed point maximises tokens per second over the long run, not of the
//          round alone
// Length 0 is always among the choices. Cheap speculators draft first and are trimmed; a speculator
// that runs a model has its length decided before, from what its positions have accepted lately.
// Exploration costs at most kProbeShare of the time. Engine thread; allocates nothing once
// constructed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/speculate/cost_model.h"
#include "runtime/speculate/draft_sources.h"
#include "runtime/speculate/head_lift.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {

struct ControllerOptions {
  int max_sequences = 8;
  int max_draft = 8;
  std::uint64_t seed = 1;  // of exploration; what is emitted does not depend on it
};

// One decode round as it was run. Rounds with prefill rows are told too: they count no costs.
struct RoundMeasurement {
  int sequences = 0;  // decoding
  int rows = 0;       // their rows: 1 + draft each
  int prefill_rows = 0;
  double work = 0;  // sum over sequences of rows * context / 1000
  int emitted = 0;  // tokens, all sequences
  double verify_ms = 0;
  bool control = false;                               // speculation off by the coin
  SpeculatorKind draft_kind = SpeculatorKind::kNone;  // that ran a model, if one did
  int draft_steps = 0;
  double draft_ms = 0;
  int head_steps = 0;  // of the recurrent head; 0: it did not run
  double head_begin_ms = 0, head_steps_ms = 0;
};

class Controller {
 public:
  // A head's hit opens the position after it as well: what one is worth beyond its own token, at
  // the acceptance of .3 to .4 that drafts have where this is in doubt.
  static constexpr double kHeadFurther = 1.5;

  explicit Controller(const ControllerOptions& options);

  // Shortens the drafts of a round's decoding sequences (all of them, those without a draft
  // included) to what pays, with at most max_extra_rows drafted tokens in all. prefill_rows: of the
  // same round.
  void trim(std::span<DraftJob> jobs, int prefill_rows, int max_extra_rows);

  // How many positions the recurrent head should draft in this round, given the cheap drafts
  // (proposed, not yet trimmed), and what the round is then expected to gain. ready[i]: the head
  // can draft for job i. Depth 0: the cheap drafts are as good.
  struct HeadPlan {
    int depth = 0;
    double value = 0;  // in tokens, the price of time taken off
  };
  HeadPlan plan_head(std::span<const DraftJob> jobs, std::span<const std::uint8_t> ready,
                     const HeadLift& lift);
  // One job's next position while the head drafts: the chance that all before it is right, and that
  // its proposal is, with another step of the head and without.
  struct HeadOutlook {
    float survival = 0, with_head = 0, without = 0;
  };
  // Whether another step of the head pays for these jobs together.
  bool another_head_step(int sequences, int depth, std::span<const HeadOutlook> jobs) const;

  // Whether the `model` speculator should draft in this round, and how far, given the cheap drafts
  // (already proposed, not yet trimmed): sets lengths[i] (0: keep the cheap draft of job i).
  // lags[i]: tokens the draft model has not seen yet. other_value: of the best plan without it.
  void plan_model(std::span<const DraftJob> jobs, const DraftSources& sources,
                  std::span<const std::int64_t> lags, std::span<int> lengths,
                  double other_value = 0);

  void observe(const RoundMeasurement& round);

  const CostModel& costs() const { return costs_; }
  CostModel& costs() { return costs_; }
  double rate(int sequences) const;  // tokens per relative cost
  // Accepted over predicted of what was lately drafted: survivals are scaled by it. Calibration
  // learns slowly, cell by cell; this notices within a dozen drafts that traffic turned.
  double trust() const;

 private:
  // Fills slots_ with the drafted tokens of all jobs, best survival first.
  void collect(std::span<const DraftJob> jobs);
  // How many of slots_ to verify; *value: what they gain, in tokens.
  int best_slots(int sequences, double work_per_slot, int prefill_rows, double* value) const;
  void sort_slots();
  double price(int sequences, int slots,
               int prefill_rows) const;  // relative cost of `slots` more rows
  double uniform();

  struct Slot {
    float survival;
    int job, depth;
  };
  struct Rate {
    double tokens = 0, cost = 0;
  };
  ControllerOptions options_;
  CostModel costs_;
  std::vector<Slot> slots_;
  std::vector<int> keep_;
  std::vector<double> survival_;
  std::vector<Rate> rates_;               // [max_sequences + 1]
  double predicted_ = 0, came_true_ = 0;  // sums, forgetting
  double predicted_now_ = 0;              // of this round's drafts
  std::uint64_t random_;
  double probe_budget_;  // relative cost the draft model may spend unproven
  int probe_rounds_left_ = 0;
  double head_probe_budget_;  // the same for the head
  int head_probe_rounds_left_ = 0;
};

}  // namespace foretoken
