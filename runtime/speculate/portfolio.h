// Everything that drafts, behind one door for the engine: the kinds that propose position by
// position (DraftSources), the head and the draft model, what rounds cost, and the policy that all
// of it is offered to. Engine thread only.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>

#include "foretoken/protocol/trace_record.h"
#include "foretoken/protocol/transport.h"
#include "runtime/observe/stats.h"
#include "runtime/speculate/cost_model.h"
#include "runtime/speculate/draft_policy.h"
#include "runtime/speculate/draft_sources.h"
#include "runtime/speculate/head_speculator.h"
#include "runtime/speculate/model_speculator.h"
#include "runtime/speculate/policy_recorder.h"

namespace foretoken {

// kinds: of those that run a model too, which draft where there is a draft model, and where the
// sequence's learned weights have a head. max_draft 0: nothing drafts.
struct PortfolioOptions : DraftSourcesOptions {
  int n_fixed = -1;                  // this many drafted always (tests, replay); -1: by cost
  const Model* target = nullptr;     // on whose device a head runs; null: on the host
  FeatureRows* features = nullptr;   // of the target, with head: its rings
  std::size_t model_step_bytes = 0;  // of the target: what a head's step is first expected to cost
  const Clock* clock = &system_clock();  // of what draft steps cost
};

class Portfolio : private DraftSources {
 public:
  Portfolio(const PortfolioOptions& options, std::unique_ptr<ModelSpeculator> model,
            kernels::ThreadPool& pool);

  int acquire_store(const std::string& key_id) { return stores().acquire(key_id); }
  void open(const DraftContext& context);
  // whole: finished, not aborted. add_to_store: it enters the traffic store (whole, traces on).
  void close(const DraftContext& context, bool whole, bool add_to_store);
  void forget(const std::string& key_id, std::uint64_t owner);  // what is kept of a key's traffic

  // Fills the jobs' drafts; max_tokens are upper bounds, lengths are chosen for the round as a
  // whole. With `control` nothing is drafted. prefill_rows: of the same round; max_extra_rows:
  // drafted tokens in all.
  void draft(std::span<DraftJob> jobs, bool control, int prefill_rows, int max_extra_rows);
  // After commit, once a sequence and round, drafted or not; context.tokens still end where the
  // round began.
  void observe(const DraftOutcome& outcome);
  // The round as it was run; what drafting cost is filled in here.
  void measured(RoundMeasurement round);
  using DraftSources::logged;
  // What the policy was told in the last round drafted, to the trace of one of its sequences.
  // Before observe().
  void record_policy(int slot, PolicyLog& log) const {
    recorder_.append_to(log, std::max(0, job_of_slot_[std::size_t(slot)]));
  }

  // Whether these weights' head would draft, and so wants features.
  bool uses_head(const LearnedWeights* learned) const { return head_ && learned && learned->head; }
  // How many positions of features, the last that has KV among them, these weights want.
  std::int64_t head_window(const LearnedWeights* learned) const {
    return uses_head(learned) ? learned->head->window() : 0;
  }
  // Which weights may draft from now on; before draft() sees them.
  void prepare(const LearnedWeights* served, const LearnedWeights* canary) {
    if (head_)
      head_->prepare(served ? served->head.get() : nullptr, canary ? canary->head.get() : nullptr);
  }
  bool keeps_features() const { return head_ != nullptr; }
  void fill(EngineStats& stats) const;
  int head_steps() const { return head_steps_; }  // of the last round drafted
  DraftSources& sources() { return *this; }

 private:
  float expect_head(int job, float cheap) override;
  void begin_head(std::span<const std::uint8_t> active) override;
  void step_head(std::span<const TokenId> tokens) override;
  Offer offer_head(int job, std::span<const TokenId> drafted, const Offer& cheap,
                   bool alone) override;
  void keep_head(std::span<const std::uint8_t> active) override;
  float expect_model(int job, int depth) override;
  void draft_model(std::span<const int> lengths) override;
  DraftTree* model_draft(int job) override;

  PortfolioOptions options_;
  CostModel costs_;
  DraftPolicy policy_;
  PolicyRecorder recorder_;
  std::vector<PolicyJob> policy_jobs_;
  std::vector<int> job_of_slot_;          // of the last round drafted; -1: not in it
  std::unique_ptr<HeadSpeculator> head_;  // null: no head may draft
  std::vector<TokenId> step_tokens_;
  std::unique_ptr<ModelSpeculator> model_;  // null: no draft model
  std::vector<DraftJob> model_jobs_;
  int head_steps_ = 0, draft_steps_ = 0;  // of this round
  double draft_model_ms_ = 0;
};

}  // namespace foretoken
