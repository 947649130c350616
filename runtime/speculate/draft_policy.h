// What a round drafts, and how much of it is verified: the one rule, for the engine and for
// everything that judges (evaluate/portfolio_replay.h). A function of what it is told: the jobs,
// the costs, what the speculators offer (DraftOffers) and its own PolicyState, which it alone
// advances. Of all drafted tokens, verify those that earn their row:
//   maximise  sum_r sum_{j <= k_r} survival(r, j)  -  rate * T(n + sum_r k_r)     over k_r >= 0
//   survival(r, j) = product of the calibrated confidences of r's first j drafted tokens
//   rate = tokens per unit of cost under the policy itself, at this number of sequences, at least
//          that of not speculating (Dinkelbach's parameter: so that the fixed point maximises
//          tokens per second over the long run, not of the round alone)
// Cheap speculators draft first and are trimmed; one that runs a model has its length decided
// before, from what its positions have accepted lately. Exploration costs at most kProbeShare of
// the time. One thread; allocates nothing once constructed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/speculate/proposal.h"
#include "runtime/speculate/round_costs.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {

// What a speculator says of one position.
struct Offer {
  TokenId token = -1;    // -1: nothing
  float raw = 0;         // its own confidence
  float confidence = 0;  // P(accepted | everything before it was), calibrated
  SpeculatorKind kind = SpeculatorKind::kNone;
  bool ends = false;    // an end of generation: nothing follows
  bool agrees = false;  // the head's: it names the cheap kinds' choice
  bool empty() const { return kind == SpeculatorKind::kNone; }
};

// Of the cheap kinds, for one position: no two name the same token.
using OfferList = BoundedVector<Offer, kMostKinds>;

// One sequence's part of a round.
struct PolicyJob {
  int max_tokens = 0;          // at most so many drafted
  std::int64_t n_tokens = 0;   // the sequence has
  bool head_ready = false;     // the head can draft for it
  std::int64_t model_lag = 0;  // tokens that the draft model has not seen yet
  DraftTree* draft = nullptr;  // out
};

// Who offers: the speculators (Portfolio), or a log. `job` indexes the round's jobs.
class DraftOffers {
 public:
  virtual ~DraftOffers() = default;
  // For the position after the sequence's tokens and `drafted`.
  virtual OfferList offer_cheap(int job, std::span<const TokenId> drafted) = 0;

  // From here on, nothing where there is no head and no draft model.
  // The chance that what is drafted with the head is accepted, where the cheap kinds are this sure.
  virtual float expect_head(int /*job*/, float cheap) { return cheap; }
  // A round of the head: begin_head() for the active jobs, then step_head() with each one's newest
  // token and offer_head() for each active job, keep_head() when some end.
  virtual void begin_head(std::span<const std::uint8_t> /*active*/) {}
  virtual void step_head(std::span<const TokenId> /*tokens*/) {}
  // cheap: the cheap kinds' choice there; alone: nothing but the head may draft.
  virtual Offer offer_head(int /*job*/, std::span<const TokenId> /*drafted*/,
                           const Offer& /*cheap*/, bool /*alone*/) {
    return {};
  }
  virtual void keep_head(std::span<const std::uint8_t> /*active*/) {}

  // The same of the draft model's position at `depth`, before it drafts.
  virtual float expect_model(int /*job*/, int /*depth*/) { return 0; }
  // Drafts lengths[i] tokens for each job (0: none); then model_draft(i), null or with calibrated
  // confidences.
  virtual void draft_model(std::span<const int> /*lengths*/) {}
  virtual DraftTree* model_draft(int /*job*/) { return nullptr; }
};

struct PolicyOptions {
  int max_sequences = 8;
  int max_draft = 8;
  int n_fixed = -1;  // draft this many always (tests, replay); -1: by cost
  // With n_fixed, the head is taken wherever it runs, so that a replay of the log at that length is
  // the same walk.
  bool head_alone = false;
  bool model = false;        // there is a draft model
  bool model_alone = false;  // with n_fixed: no turns with the other kinds
  std::uint64_t seed = 1;    // of exploration; what is emitted does not depend on it
};

// All that the rule carries from round to round. Costs are in units of a round of one row.
struct PolicyState {
  struct Rate {
    double tokens = 0, cost = 0;  // sums, forgetting
    bool operator==(const Rate&) const = default;
  };
  // What may be spent on a speculator that runs a model and is not proven, and the rounds left of
  // the burst under way.
  struct Probe {
    double budget = 0;
    int rounds_left = 0;
    bool operator==(const Probe&) const = default;
  };
  std::vector<Rate> rates;              // [max_sequences + 1]
  double predicted = 0, came_true = 0;  // sums, forgetting
  double predicted_now = 0;             // of this round's drafts
  std::uint64_t random = 0;
  Probe model, head;
};

// A position at which the head ran, for learning from what came.
struct HeadPosition {
  Offer head;           // its proposal
  TokenId drafted = 0;  // what was chosen there
  Offer cheap;          // the cheap kinds' choice, or none
};

class DraftPolicy {
 public:
  // A head's hit opens the position after it as well: what one is worth beyond its own token, at
  // the acceptance of .3 to .4 that drafts have where this is in doubt.
  static constexpr double kHeadFurther = 1.5;
  // A draft stops where the chance that all of it is accepted falls below this: at any price of a
  // row above a hundredth of a round it would be cut there.
  static constexpr float kMinSurvival = 0.01f;
  // Where the head ran, its proposal is drafted unless the cheap kinds are surer of theirs by this
  // much: its logits have weighed their candidates already, and the larger of two estimates is
  // often the luckier one (replays of an hour of traffic: 0.4 % faster than with no margin, and
  // than with twice the margin).
  static constexpr float kHeadMargin = 0.1f;

  explicit DraftPolicy(const PolicyOptions& options);

  // Fills the jobs' drafts. prefill_rows: of the same round; max_extra_rows: drafted tokens in all.
  void draft(std::span<const PolicyJob> jobs, int prefill_rows, int max_extra_rows,
             const RoundCosts& costs, DraftOffers& offers);
  // Of the round drafted last: where the head ran, whatever became of it.
  std::span<const HeadPosition> head_positions(int job) const {
    return scratch_[std::size_t(job)].head_positions;
  }
  int head_steps() const { return head_steps_; }
  double cost() const { return cost_; }  // as chosen, a draft model's steps aside

  // The round as it was run, and the costs that it left. Rounds with prefill rows teach nothing.
  void observe(const RoundMeasurement& round, const RoundCosts& costs);

  const PolicyOptions& options() const { return options_; }
  const PolicyState& state() const { return state_; }
  void set_state(const PolicyState& state) { state_ = state; }
  double rate(int sequences, const RoundCosts& costs) const;  // tokens per cost
  // Accepted over predicted of what was lately drafted: survivals are scaled by it. Calibration
  // learns slowly, cell by cell; this notices within a dozen drafts that traffic turned.
  double trust() const;

  // Of the offers for one position, the one to draft; empty: nothing is known. Of two that are as
  // sure, the later.
  static Offer choose(const OfferList& offers);
  // Goes on with a draft that holds with probability `survival` so far, by the cheap kinds, until
  // they have nothing, it is long enough, unlikely, or at an end.
  static void extend(DraftOffers& offers, int job, int max_tokens, float min_survival,
                     float survival, DraftTree& draft);

 private:
  struct HeadPlan {
    int depth = 0;     // positions that the head should draft; 0: the cheap drafts are as good
    double value = 0;  // what the round is then expected to gain: tokens, less the price of time
  };
  HeadPlan plan_head(std::span<const PolicyJob> jobs, const RoundCosts& costs, DraftOffers& offers);
  void plan_model(std::span<const PolicyJob> jobs, double other_value, const RoundCosts& costs,
                  DraftOffers& offers);
  void draft_head(std::span<const PolicyJob> jobs, int depth, const RoundCosts& costs,
                  DraftOffers& offers);
  bool another_head_step(std::size_t sequences, int depth, const RoundCosts& costs) const;
  void trim(std::span<const PolicyJob> jobs, int prefill_rows, int max_extra_rows,
            const RoundCosts& costs);
  // Fills slots_ with the drafted tokens of all jobs, best survival first.
  void collect(std::span<const PolicyJob> jobs);
  // How many of slots_ to verify; *value: what they gain, in tokens.
  int best_slots(int sequences, double work_per_slot, int prefill_rows, const RoundCosts& costs,
                 double* value) const;
  void sort_slots();

  struct Slot {
    float survival;
    int job, depth;
  };
  // One job's next position while the head drafts: the chance that all before it is right, and that
  // its proposal is, with another step of the head and without.
  struct Outlook {
    float survival = 0, with_head = 0, without = 0;
  };
  struct Scratch {  // of one job
    int max_tokens = 0;
    std::uint8_t ended = 0;  // its draft is at an end of generation
    int keep = 0;
    float survival = 0;
    double model_survival = 0;
    DraftTree head_draft;
    std::vector<float> lifts;  // [max_draft + 1]: with the head, where the cheap draft is; past it
    std::vector<HeadPosition> head_positions;
  };
  const PolicyOptions options_;
  PolicyState state_;
  std::vector<Scratch> scratch_;  // [max_sequences]
  std::vector<Slot> slots_;
  std::vector<Outlook> outlook_;
  std::vector<std::uint8_t> ready_, active_;
  std::vector<TokenId> step_tokens_;
  std::vector<int> lengths_;
  int head_steps_ = 0;  // of the last round
  double cost_ = 0;
};

}  // namespace foretoken
