// The speculators that propose position by position (kinds/), and what they share: each open
// sequence's own-context index, its candidates, the traffic stores, and the calibration of all
// kinds. The learned weights come with each call (DraftContext::learned). Owned by the engine and
// called by its thread alone, once a sequence and round, whatever was drafted:
//   open() when a sequence starts or returns after preemption
//   commit() after every decode round (control rounds and draft length 0 included)
//   close() when it ends; a whole, traced request then enters the traffic store
// commit() scores those kinds at *every* emitted token, drafted or not: what they would have
// proposed there is known exactly (at temperature > 0 too: the noise is a function of seed and
// position), so calibration costs no probing, and speculation that went quiet hears when traffic
// becomes predictable. Nothing allocates while a sequence stays below max_tokens.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/speculate/acceptance_estimator.h"
#include "runtime/speculate/candidates.h"
#include "runtime/speculate/kind_set.h"
#include "runtime/speculate/ngram_index.h"
#include "runtime/speculate/proposal.h"
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

class DraftSources {
 public:
  // The form of recent traffic, over about a hundred tokens: what a new sequence starts from.
  static constexpr float kTrafficStep = 0.01f;

  explicit DraftSources(const DraftSourcesOptions& options);

  TrafficStores& stores() { return stores_; }
  const TrafficStores& stores() const { return stores_; }
  AcceptanceEstimator& acceptance() { return acceptance_; }
  const AcceptanceEstimator& acceptance() const { return acceptance_; }

  void open(const DraftContext& context);
  // The tokens of one round; context.tokens are those before it.
  void commit(const DraftContext& context, std::span<const TokenId> emitted);
  // add_to_store: false for aborted requests and those with trace off.
  void close(int slot, bool add_to_store);

  void forget(std::string_view key_id);  // what a key's traffic has taught

  // What those of `kinds` say of the token after the sequence's and `drafted`, not calibrated.
  ProposalList propose(const DraftContext& context, std::span<const TokenId> drafted,
                       SpecType kinds);

  // The candidates of the token after the sequence's and `drafted`; valid until the next look-up.
  const CandidateList& candidates(const DraftContext& context, std::span<const TokenId> drafted) {
    return lookup(at(context.slot), drafted);
  }
  // The head ran at this round's next emitted position, whatever was drafted there: was it right?
  // Before commit(), in the positions' order.
  void score_head(const DraftContext& context, Claim claim, float raw, bool hit);

  // P(accepted | the draft's `depth` positions before it were), and that of a position not drafted
  // yet. The model's claims are not scored in the shadow but from outcomes, by observe().
  float calibrate(Claim claim, const DraftContext& context, float raw, int depth) const;
  float expect(Claim claim, const DraftContext& context, int depth) const;
  void observe(const DraftOutcome& outcome);

  // The candidates of the tokens committed since open(), in order: as first looked up with the
  // right prefix. For the trace.
  std::span<const CandidateList> logged(int slot) const;

 private:
  struct Sequence {
    NgramIndex own;
    int store = 0;
    bool open = false;
    std::array<Form, kClaims> form;
    // The candidates along this round's draft: path[i] is for the position after path_tokens[0..i).
    std::vector<TokenId> path_tokens;
    std::vector<CandidateList> path;
    std::vector<CandidateList> logged;
  };

  void forget_cleared(int store);
  void score(Sequence& sequence, Claim claim, float raw, bool sampled, bool hit);
  const CandidateList& lookup(Sequence& sequence, std::span<const TokenId> drafted);
  Sequence& at(int slot) { return sequences_[static_cast<std::size_t>(slot)]; }
  const Sequence& at(int slot) const { return sequences_[static_cast<std::size_t>(slot)]; }

  int max_draft_;
  TrafficStores stores_;
  KindSet kinds_;
  std::vector<std::uint64_t> cleared_;  // of each store, how often when it was last seen
  AcceptanceEstimator acceptance_;
  HitRates rates_;
  std::array<std::array<Form, kClaims>, 2> traffic_form_;  // [sampled][claim]
  std::vector<Sequence> sequences_;
};

}  // namespace foretoken
