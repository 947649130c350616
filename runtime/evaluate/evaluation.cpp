#include "runtime/evaluate/evaluation.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace foretoken {
namespace {

constexpr std::size_t kNone = 0, kNgram = 1, kAuto = 4;

float median(std::vector<float> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

const char* name(RoundPlan plan) {
  constexpr const char* kNames[] = {"fixed", "cost", "logged"};
  return kNames[std::size_t(plan)];
}

PortfolioWalk walk_by_plan(PortfolioReplay& replay, const EvaluationOptions& options,
                           const RequestTrace& trace) {
  if (options.plan == RoundPlan::kByCost)
    return replay.walk_costed(trace, options.draft_length, options.costs);
  if (options.plan == RoundPlan::kLogged) return replay.walk_logged(trace, &options.costs);
  return replay.walk_fixed(trace, options.draft_length, &options.costs);
}

RatioEstimate ratio_estimate(const PairedSums& sums) {
  const double value = 1 + sums.gain();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  if (sums.requests < 2 || sums.candidate <= 0) return {sums.candidate > 0 ? value : nan, nan, nan};
  const double error = 1.96 * sums.deviation() / std::sqrt(double(sums.requests));
  return {value, value - error, value + error};
}

void PortfolioFigures::add(const PortfolioWalk& walk, double plain_ms) {
  tokens_per_round.add(double(walk.stats.rounds), double(walk.stats.emitted));
  if (walk.predicted_ms > 0) speedup.add(walk.predicted_ms, plain_ms);
  drafted += walk.stats.drafted;
  accepted += walk.stats.accepted;
}

Evaluation::Evaluation(const EvaluationOptions& options,
                       std::shared_ptr<const LearnedWeights> weights)
    : options_(options), weights_(std::move(weights)) {
  for (std::size_t i = 0; i < kPortfolios.size(); ++i) {
    if (has(i))
      replays_[i] = std::make_unique<PortfolioReplay>(kPortfolios[i].kinds, weights_.get());
  }
}

bool Evaluation::has(std::size_t portfolio) const {
  return weights_->head || std::string_view(kPortfolios[portfolio].name) != "fusion+head";
}

Evaluation::Walks Evaluation::walk(const RequestTrace& trace) {
  Walks walks;
  for (std::size_t i = 0; i < kPortfolios.size(); ++i) {
    if (!replays_[i]) continue;
    walks[i] = i == kNone ? replays_[i]->walk_fixed(trace, 0, &options_.costs)
                          : walk_by_plan(*replays_[i], options_, trace);
  }
  return walks;
}

void Evaluation::warm(const RequestTrace& trace) {
  if (!trace.gap) walk(trace);
}

void Evaluation::add(const RequestTrace& trace) {
  const Walks walks = walk(trace);
  if (trace.gap || walks[kNone].stats.rounds == 0 || walks[kAuto].stats.rounds == 0) {
    ++skipped_;
    return;
  }
  if (weights_->head && walks[kAuto].rounds_without_features > 0) ++without_features_;
  for (Domain* domain : {&all_, &domains_[trace.domain]}) {
    ++domain->requests;
    domain->tokens += walks[kAuto].stats.emitted;
    for (std::size_t i = 0; i < kPortfolios.size(); ++i) {
      if (!replays_[i]) continue;
      // Plain decoding of the same tokens: at logged rounds not all of a request's.
      const double plain_ms = double(walks[i].stats.emitted) * options_.costs.round(1);
      domain->portfolios[i].add(walks[i], plain_ms);
    }
    if (walks[kAuto].stats.emitted == walks[kNgram].stats.emitted &&
        walks[kAuto].predicted_ms > 0 && walks[kNgram].predicted_ms > 0)
      domain->learned_gain.add(walks[kAuto].predicted_ms, walks[kNgram].predicted_ms);
  }
}

void CostsOfLog::add(const RequestTrace& trace) {
  for (const RoundTrace& round : trace.rounds) {
    const auto drafted = std::ssize(round.drafted);
    // Alone in its engine round, and with a sane clock.
    if (round.rows != drafted + 1 || round.rows < 1 || std::size_t(round.rows) > kRows ||
        !(round.verify_ms > 0) || !std::isfinite(round.verify_ms))
      continue;
    auto& times = round_ms_[std::size_t(round.rows) - 1];
    if (times.size() < kMost) times.push_back(round.verify_ms);
    const auto steps = std::count(round.kinds.begin(), round.kinds.end(), SpeculatorKind::kHead);
    if (steps > 0 && round.draft_ms > 0 && std::isfinite(round.draft_ms) &&
        head_step_ms_.size() < kMost)
      head_step_ms_.push_back(round.draft_ms / (float(steps) + 0.25f));
  }
}

std::optional<RoundCosts> CostsOfLog::fit() const {
  // Isotonic, weighted by the rounds seen: a count that was rare, or common only while the machine
  // was slow, does not lift all that come after it.
  std::array<IsotonicFit<double>::Block, kRows> blocks;
  IsotonicFit<double> isotonic(blocks);
  std::vector<std::size_t> often;  // rows - 1
  for (std::size_t i = 0; i < kRows; ++i) {
    if (round_ms_[i].size() < kEnough) continue;
    isotonic.add(double(median(round_ms_[i])), double(round_ms_[i].size()));
    often.push_back(i);
  }
  std::vector<double> curve(often.size());
  isotonic.write(curve.begin());
  std::vector<std::pair<std::size_t, float>> known;
  for (std::size_t i = 0; i < often.size(); ++i) known.emplace_back(often[i], float(curve[i]));
  if (known.size() < 2) return std::nullopt;
  std::vector<float> round_ms;
  std::size_t segment = 0;  // before the first and past the last: their segment's line goes on
  for (std::size_t i = 0; i < kRows; ++i) {
    while (segment + 2 < known.size() && i > known[segment + 1].first) ++segment;
    const auto [x0, y0] = known[segment];
    const auto [x1, y1] = known[segment + 1];
    const float slope = (y1 - y0) / float(x1 - x0);
    const float ms = y0 + slope * (float(i) - float(x0));
    round_ms.push_back(std::max(ms, 0.5f * known.front().second));
  }
  const float step = head_step_ms_.size() < kEnough ? 0.0f : median(head_step_ms_);
  return RoundCosts::measured(round_ms, step / 4, step);
}

BundleComparison::BundleComparison(const EvaluationOptions& options, const SequentialOptions& test,
                                   std::shared_ptr<const LearnedWeights> candidate,
                                   std::shared_ptr<const LearnedWeights> served)
    : options_(options),
      candidate_(std::move(candidate)),
      served_(std::move(served)),
      candidate_replay_(spec_type("auto"), candidate_.get()),
      served_replay_(spec_type("auto"), served_.get()),
      test_(test) {}

void BundleComparison::add(const RequestTrace& trace) {
  if (trace.gap) return;
  const PortfolioWalk candidate = walk_by_plan(candidate_replay_, options_, trace);
  const PortfolioWalk served = walk_by_plan(served_replay_, options_, trace);
  if (candidate.rounds_without_features > 0 || served.rounds_without_features > 0) return;
  test_.add(trace.domain, candidate.predicted_ms, served.predicted_ms);
  if (verdict_ != Verdict::kUndecided) return;
  const SequentialFigures figures = test_.judge();
  because_ = figures.because;
  verdict_ = figures.verdict;
  if (verdict_ != Verdict::kUndecided) decided_after_ = test_.requests();
}

}  // namespace foretoken
