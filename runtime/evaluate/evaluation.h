// What each portfolio would have made of recorded requests: tokens a round and predicted speed, by
// domain, with intervals. Requests are the independent units: all of a request's rounds share its
// text, so rounds are not. Used by `foretoken evaluate`. One thread; memory: a few numbers a
// request and domain, not the requests.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/protocol/trace_record.h"
#include "runtime/evaluate/portfolio_replay.h"
#include "runtime/evaluate/sequential_test.h"
#include "runtime/speculate/estimators.h"
#include "runtime/speculate/learned.h"
#include "runtime/speculate/round_costs.h"

namespace foretoken {

struct PortfolioKind {
  const char* name;
  SpecType kinds;
};
// In the order of tables: none, ngram, fusion, fusion+head, auto.
inline constexpr std::array<PortfolioKind, 5> kPortfolios = {
    {{"none", spec_type("none")},
     {"ngram", spec_type("ngram")},
     {"fusion", kinds_named("fusion")},
     {"fusion+head", kinds_named("fusion", "head")},
     {"auto", spec_type("auto")}}};

// How rounds are laid over the log.
enum class RoundPlan : std::uint8_t {
  kFixed,   // drafts of one length
  kByCost,  // drafts as long as they pay by the round's costs, 0 included
  kLogged,  // the logged starts, lengths and kinds
};
const char* name(RoundPlan plan);

// A ratio of sums over requests with its 95 % interval: normal, of the ratio's linearised
// residuals. NaN bounds below 2 requests.
struct RatioEstimate {
  double value = 0, low = 0, high = 0;
};
RatioEstimate ratio_estimate(const PairedSums& sums);

struct PortfolioFigures {
  PairedSums tokens_per_round;  // rounds, tokens
  PairedSums speedup;           // predicted ms, predicted ms of plain decoding
  std::int64_t drafted = 0, accepted = 0;
  void add(const PortfolioWalk& walk, double plain_ms);
};

struct EvaluationOptions {
  RoundPlan plan = RoundPlan::kFixed;
  int draft_length = 4;  // of kFixed; the most for kByCost
  RoundCosts costs = RoundCosts::typical();
};

PortfolioWalk walk_by_plan(PortfolioReplay& replay, const EvaluationOptions& options,
                           const RequestTrace& trace);

class Evaluation {
 public:
  Evaluation(const EvaluationOptions& options, std::shared_ptr<const LearnedWeights> weights);

  void add(const RequestTrace& trace);
  // An earlier request: the portfolios' calibration learns from it, nothing is counted.
  void warm(const RequestTrace& trace);

  bool has(std::size_t portfolio) const;  // fusion+head without a head is left out
  struct Domain {
    std::int64_t requests = 0, tokens = 0;
    std::array<PortfolioFigures, kPortfolios.size()> portfolios;
    PairedSums learned_gain;  // predicted ms of auto and of auto without what was learned
  };
  const Domain& all() const { return all_; }
  const std::map<std::string, Domain>& domains() const { return domains_; }
  std::int64_t without_features() const { return without_features_; }  // requests a head cannot see
  std::int64_t skipped() const { return skipped_; }                    // gaps, or nothing to decode

 private:
  using Walks = std::array<PortfolioWalk, kPortfolios.size()>;
  Walks walk(const RequestTrace& trace);

  EvaluationOptions options_;
  std::shared_ptr<const LearnedWeights> weights_;
  std::array<std::unique_ptr<PortfolioReplay>, kPortfolios.size()> replays_;
  Domain all_;
  std::map<std::string, Domain> domains_;
  std::int64_t without_features_ = 0, skipped_ = 0;
};

// The costs of rounds as the log itself shows them: of rounds that ran alone, the median by rows,
// made non-decreasing, interpolated where a count was rare. nullopt: fewer than two counts of rows
// were seen often enough.
class CostsOfLog {
 public:
  void add(const RequestTrace& trace);
  std::optional<RoundCosts> fit() const;

 private:
  static constexpr std::size_t kRows = 17, kEnough = 20, kMost = 20000;
  std::array<std::vector<float>, kRows> round_ms_;
  std::vector<float> head_step_ms_;
};

// Two bundles on the same requests, as the trainer's gate compares them.
class BundleComparison {
 public:
  BundleComparison(const EvaluationOptions& options, const SequentialOptions& test,
                   std::shared_ptr<const LearnedWeights> candidate,
                   std::shared_ptr<const LearnedWeights> served);
  void add(const RequestTrace& trace);

  // The gate's, at the request where it decided; the figures are of all requests.
  Verdict verdict() const { return verdict_; }
  std::int64_t decided_after() const { return decided_after_; }
  const std::string& because() const { return because_; }
  SequentialFigures figures() const { return test_.judge(); }

 private:
  EvaluationOptions options_;
  std::shared_ptr<const LearnedWeights> candidate_, served_;
  PortfolioReplay candidate_replay_, served_replay_;
  SequentialTest test_;
  Verdict verdict_ = Verdict::kUndecided;
  std::int64_t decided_after_ = 0;
  std::string because_;
};

}  // namespace foretoken
