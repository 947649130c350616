// Writes down what the draft policy was told in a round and carried into it, for the traces of the
// round's sequences (PolicyLog): stands between the policy and whoever offers. What it writes is
// read by tests/support/round_replay.h. Engine thread; allocates nothing once constructed.
#pragma once

#include <span>

#include "foretoken/protocol/trace_record.h"
#include "runtime/speculate/draft_policy.h"

namespace foretoken {

// What a recorded round has of the policy's options, state and costs, for writing it down and for
// going on from it: call(recorded, own) for each. round.n_jobs is known.
template <class Round, class Options, class State, class Costs, class Call>
void each_recorded(Round& round, Options& options, State& state, Costs& costs, const Call& call) {
  call(round.max_draft, options.max_draft);
  call(round.n_fixed, options.n_fixed);
  call(round.head_alone, options.head_alone);
  call(round.model, options.model);
  call(round.model_alone, options.model_alone);
  call(round.slope, costs.slope);
  call(round.batch_row, costs.batch_row);
  call(round.head_start, costs.head_start);
  call(round.head_step, costs.head_step);
  call(round.model_step, costs.model_step);
  auto& rate = state.rates[std::size_t(round.n_jobs)];
  call(round.rate_tokens, rate.tokens);
  call(round.rate_cost, rate.cost);
  call(round.predicted, state.predicted);
  call(round.came_true, state.came_true);
  call(round.model_budget, state.model.budget);
  call(round.model_rounds_left, state.model.rounds_left);
  call(round.head_budget, state.head.budget);
  call(round.head_rounds_left, state.head.rounds_left);
  call(round.random, state.random);
}

class PolicyRecorder : public DraftOffers {
 public:
  PolicyRecorder(int max_sequences, int max_draft);

  // A round in which nothing is drafted, unless draft() follows.
  void begin_round() { round_ = {}; }
  // policy.draft() of the same arguments, written down.
  void draft(DraftPolicy& policy, std::span<const PolicyJob> jobs, int prefill_rows,
             int max_extra_rows, const RoundCosts& costs, DraftOffers& offers);
  // The round, as one of its jobs' trace has it. job: 0 where nothing was drafted.
  void append_to(PolicyLog& log, int job) const;

  OfferList offer_cheap(int job, std::span<const TokenId> drafted) override;
  float expect_head(int job, float cheap) override;
  void begin_head(std::span<const std::uint8_t> active) override { offers_->begin_head(active); }
  void step_head(std::span<const TokenId> tokens) override { offers_->step_head(tokens); }
  Offer offer_head(int job, std::span<const TokenId> drafted, const Offer& cheap,
                   bool alone) override;
  void keep_head(std::span<const std::uint8_t> active) override { offers_->keep_head(active); }
  float expect_model(int job, int depth) override;
  void draft_model(std::span<const int> lengths) override { offers_->draft_model(lengths); }
  DraftTree* model_draft(int job) override;

 private:
  void told(float value, int as);
  void told(const Offer& offer, bool more);

  DraftOffers* offers_ = nullptr;
  PolicyRound round_;
  PolicyLog log_;  // of this round; its `rounds` is not used
};

}  // namespace foretoken
