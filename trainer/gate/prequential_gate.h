// The gate: no weights leave the trainer unproven. A candidate is a frozen snapshot, and only
// requests that arrive after it score it, while the learner trains on (prequential), by walking the
// logged request with the kernels and quantised weights that serve, whole portfolio and all
// (replay-exact). Cost: the predicted time of the rounds at the server's measured costs, the head's
// included, drafts as long as they pay, as the server's policy has them. Verdict:
// runtime/evaluate/sequential_test.h, 1/100 a day of errors over all trials; each tier, fusion
// alone and fusion with head, spends half of its candidate's, and the faster of those that pass is
// published. When a trial begins, ends and begins again: trainer/README.md, "The gate".
// Pure state machine: no I/O, the wall clock is passed in; its state is plain data for the
// checkpoint. One thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/trace_record.h"
#include "runtime/evaluate/evaluation.h"
#include "runtime/evaluate/portfolio_replay.h"
#include "runtime/evaluate/sequential_test.h"
#include "runtime/speculate/learned.h"

namespace foretoken::trainer {

enum class Tier : std::uint8_t { kFusion = 0, kHead = 1 };
inline constexpr int kTiers = 2;
const char* name(Tier tier);  // "fusion", "fusion+head"

struct CandidateFacts {
  std::int64_t step = 0, trained_tokens = 0, trained_requests = 0;
  double loss = 0;
  std::uint64_t hash = 0;  // content hash of the candidate's file: a checkpoint belongs to one file
  bool has_head = false;
  bool operator==(const CandidateFacts&) const = default;
};

struct TierScore {
  std::map<std::string, PairedSums> domains;  // ms, by domain
  Verdict verdict = Verdict::kUndecided;      // final for this candidate unless undecided
  std::int64_t candidate_rounds = 0, candidate_emitted = 0, served_rounds = 0, served_emitted = 0;
  bool operator==(const TierScore&) const = default;
};

struct Trial {
  std::uint64_t candidate = 0;  // its number
  int number_in_day = 0;        // of the trial: what its error is
  CandidateFacts facts;
  RoundCosts costs;  // those in force when it was proposed
  std::array<TierScore, kTiers> tiers;
  int tier_count() const { return facts.has_head ? 2 : 1; }
  // Requests it may take: as many as the candidate was trained on, because by then the learner has
  // seen twice as much and its curve is logarithmic in that; at least the 150 that +10 % may take,
  // at most the 1,000 that +3 % may.
  int most_requests() const;
  bool operator==(const Trial&) const = default;
};

struct GateState {
  std::uint64_t candidates = 0;    // proposed so far: the newest one's number
  std::int64_t day = 0;            // since 1970, of the newest trial; never goes back
  int number_in_day = 0;           // the newest trial's
  CandidateFacts newest;           // the last proposed, decided or not
  std::vector<Trial> trials;       // oldest first, at most kTrials
  std::deque<std::string> recent;  // domains of the last requests, scored or not
};

struct GateOptions {
  // How rounds are laid over a request, and the longest draft; candidate and served alike.
  RoundPlan plan = RoundPlan::kByCost;
  int draft_length = 8;
  int least_trained_requests = 16;  // no snapshot before the learner has seen so many
  // The next candidate is due once the learner has seen so many times the requests of the last.
  double growth = 1.5;
  // Of SequentialTest, but for alpha and most_requests.
  SequentialOptions test;
  // Below kLeastRequests for tests: nothing is then waited for.
  void set_least_requests(int requests) {
    test.least_requests = test.domain_requests = requests;
    if (requests < kLeastRequests) test.domain_share = test.pool_share = 1;
  }
  // Below 0 for tests: no domain is then held to more than all together.
  void set_least_gain(double gain) {
    test.least_gain = gain;
    test.domain_margin = std::max(test.domain_margin, -gain);
  }
};

class PrequentialGate {
 public:
  static constexpr std::size_t kRecent = 256;
  // On trial at once. Each costs the replay of every request, with the head, twice where a head
  // serves.
  static constexpr std::size_t kTrials = 2;

  struct Decision {
    Verdict verdict = Verdict::kUndecided;
    Tier tier = Tier::kFusion;  // to publish, if promoted
    // Of all that the candidate has: its gain is too little to be shown, and it was not overtaken.
    bool too_little = false;
    std::int64_t trained_tokens = 0;
    CandidateVerdict record;  // text and figures; the version is the publisher's to fill in
  };

  PrequentialGate(const GateOptions& options, std::shared_ptr<const LearnedWeights> served);

  // Is a snapshot due, of a learner at this step that has seen so many requests?
  bool wants(std::int64_t step, std::int64_t trained_requests) const;
  // `weights` exactly as they would be served, at the costs that the server measured. The decision
  // is of the oldest trial, where this one took its place.
  std::optional<Decision> propose(std::shared_ptr<const LearnedWeights> weights,
                                  const CandidateFacts& facts, const RoundCosts& costs,
                                  std::int64_t unix_ms);
  // Trials that are new here: warm() walks an earlier request with each of them, in order, the last
  // warm_requests() of them; then begin() ends the warm-up. score() does so too. Twice what a
  // verdict takes at least: where candidates are quickly judged, warming up must not be the work.
  std::uint64_t warm_requests() const {
    return 2 *
           static_cast<std::uint64_t>(std::clamp(options_.test.least_requests, 0, kLeastRequests));
  }
  bool is_cold() const;
  void warm(const RequestTrace& trace);
  void begin();
  // A request that arrived after the snapshots of all candidates. At most one of the decisions is a
  // promotion, the last of them; what it promotes is what is served.
  std::vector<Decision> score(const RequestTrace& trace, std::int64_t unix_ms);

  // Something else serves now (the server rolled back): every candidate is judged anew against it.
  void set_served(std::shared_ptr<const LearnedWeights> served);
  const LearnedWeights& served() const { return *served_; }

  bool has_candidate() const { return !state_.trials.empty(); }
  const GateState& state() const { return state_; }
  // `candidates`: the weights of each of state.trials; a null one is lost, and so is its trial.
  void restore(GateState state,
               const std::vector<std::shared_ptr<const LearnedWeights>>& candidates);
  // One line: how the candidates stand.
  std::string standing() const;

 private:
  // What a trial is walked with.
  struct Replays {
    std::shared_ptr<const LearnedWeights> candidate;
    bool cold = true;
    // Made for every trial, all at once, so that none has learned its calibration longer.
    std::unique_ptr<PortfolioReplay> served;
    std::array<std::unique_ptr<PortfolioReplay>, kTiers> tiers;
  };
  SequentialTest test_of(const Trial& trial, int tier) const;
  void score(Trial& trial, Replays& replays, const RequestTrace& trace) const;
  Decision decide(const Trial& trial, std::int64_t unix_ms, const char* ended_by) const;
  std::string text_of(const TierScore& score, const SequentialFigures& figures) const;
  void number(Trial& trial, std::int64_t unix_ms);
  void start(std::shared_ptr<const LearnedWeights> candidate);  // of the newest trial
  PortfolioWalk walk(PortfolioReplay& replay, const Trial& trial, const RequestTrace& trace) const;
  std::unique_ptr<PortfolioReplay> replay_of_served() const;
  // calibrated: what the replay of what serves now begins with; null: as the one before had it.
  void serve(std::shared_ptr<const LearnedWeights> weights, const PortfolioReplay* calibrated);
  void judge_anew(std::size_t trial, const PortfolioReplay& calibrated);

  const GateOptions options_;
  GateState state_;
  std::shared_ptr<const LearnedWeights> served_;
  std::vector<Replays> replays_;  // of each of state_.trials
};

// A candidate without its head: what tier kFusion publishes.
std::shared_ptr<const LearnedWeights> without_head(const LearnedWeights& weights);

}  // namespace foretoken::trainer
