// The speculators that propose position by position (kinds/), as offers to the draft policy, and
// what they share: each open sequence's own-context index, its candidates, the traffic stores, and
// the calibration of all kinds. Portfolio adds those that run a model. The learned weights come
// with each call (DraftContext::learned). Called by the engine's thread alone, once a sequence and
// round, whatever was drafted:
//   open() when a sequence starts or returns after preemption
//   commit() after every decode round (control rounds and draft length 0 included)
//   close() when it ends; a whole, traced request then enters the traffic store
// commit() scores those kinds at *every* emitted token, drafted or not: what they would have
// proposed there is known exactly (at temperature > 0 too: the noise is a function of seed and
// position), so calibration costs no probing, and speculation that went quiet hears when traffic
// becomes predictable. Nothing allocates while a sequence stays below max_tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/speculate/draft_policy.h"
#include "runtime/speculate/kind_calibration.h"
#include "runtime/speculate/kind_set.h"
#include "runtime/speculate/ngram_index.h"
#include "runtime/speculate/registry.h"
#include "runtime/speculate/speculator.h"
#include "runtime/speculate/traffic_store.h"

namespace foretoken {

struct DraftSourcesOptions {
  int max_sequences = 8;
  int max_draft = 8;
  std::int64_t max_tokens = 8192;  // of one sequence
  // 32 MiB hold a million contexts, the n-grams of about 500k tokens of ordinary traffic.
  std::size_t store_bytes = std::size_t{32} << 20;
  int max_stores = 16;                 // raised to max_sequences + 1
  SpecType kinds = spec_type("auto");  // which of the position-by-position kinds are there
};

class DraftSources : public DraftOffers {
 public:
  explicit DraftSources(const DraftSourcesOptions& options);

  TrafficStores& stores() { return stores_; }
  const TrafficStores& stores() const { return stores_; }

  void open(const DraftContext& context);
  // The tokens of one round; context.tokens are those before it.
  void commit(const DraftContext& context, std::span<const TokenId> emitted);
  // add_to_store: false for aborted requests and those with trace off.
  void close(int slot, bool add_to_store);

  void forget(std::string_view key_id);  // what a key's traffic has taught

  // The round's jobs, by the index that every offer names, and which of the kinds may draft.
  void begin_round(std::span<const DraftJob> jobs, SpecType kinds) {
    jobs_ = jobs;
    drafting_ = kinds;
  }
  OfferList offer_cheap(int job, std::span<const TokenId> drafted) override;

  // What those of `kinds` say of the token after the sequence's and `drafted`, not calibrated.
  ProposalList propose(const DraftContext& context, std::span<const TokenId> drafted,
                       SpecType kinds);
  // The candidates of the token after the sequence's and `drafted`; valid until the next look-up.
  const CandidateList& candidates(const DraftContext& context, std::span<const TokenId> drafted);
  // P(accepted | the draft's `depth` positions before it were), and that of a position not drafted
  // yet. The model's claims are not scored in the shadow but from outcomes, by observe().
  float calibrate(Claim claim, const DraftContext& context, float raw, int depth) const {
    return calibration_.estimate(context, at(context.slot).forms, claim, raw, depth);
  }
  float expect(Claim claim, const DraftContext& context, int depth) const {
    return calibration_.expect(context, at(context.slot).forms, claim, depth);
  }
  void observe(const DraftOutcome& outcome);

  // The candidates of the tokens committed since open(), in order: as first looked up with the
  // right prefix. For the trace.
  std::span<const CandidateList> logged(int slot) const { return at(slot).logged; }

 protected:
  struct Sequence {
    NgramIndex own;
    int store = 0;
    bool open = false;
    Forms forms;
    // The candidates along this round's draft: path[i] is for the position after path_tokens[0..i).
    std::vector<TokenId> path_tokens;
    std::vector<CandidateList> path;
    std::vector<CandidateList> logged;
  };

  const DraftContext& context(int job) const { return jobs_[std::size_t(job)].context; }
  Sequence& at(int slot) { return sequences_[std::size_t(slot)]; }
  const Sequence& at(int slot) const { return sequences_[std::size_t(slot)]; }
  std::span<const DraftJob> jobs_;
  KindCalibration calibration_;

 private:
  SpecType drafting_;
  TrafficStores stores_;
  KindSet kinds_;
  std::vector<Sequence> sequences_;
};

}  // namespace foretoken
