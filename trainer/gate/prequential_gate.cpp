#include "trainer/gate/prequential_gate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace foretoken::trainer {
namespace {

constexpr std::int64_t kDayMs = 86'400'000;
constexpr int kFewestRequests = 150, kMostRequests = 1000;
// Of recent traffic: the share from which on a domain's requests are waited for.
constexpr double kExpectedShare = 0.1;

std::string percent(const DomainFigures& figures) {
  const std::string high =
      std::isfinite(figures.high) ? fmt::format("{:+.1f}", 100 * figures.high) : "?";
  return fmt::format("{:+.1f} % [{:+.1f}, {}]", 100 * figures.gain, 100 * figures.low, high);
}

double ratio(std::int64_t emitted, std::int64_t rounds) {
  return rounds > 0 ? double(emitted) / double(rounds) : 1.0;
}

}  // namespace

const char* name(Tier tier) { return tier == Tier::kHead ? "fusion+head" : "fusion"; }

std::shared_ptr<const LearnedWeights> without_head(const LearnedWeights& weights) {
  auto out = std::make_shared<LearnedWeights>(weights);
  out->head.reset();
  return out;
}

PrequentialGate::PrequentialGate(const GateOptions& options,
                                 std::shared_ptr<const LearnedWeights> served)
    : options_(options), served_(std::move(served)) {}

int Trial::most_requests() const {
  return static_cast<int>(
      std::clamp<std::int64_t>(facts.trained_requests, kFewestRequests, kMostRequests));
}

bool PrequentialGate::wants(std::int64_t step, std::int64_t trained_requests) const {
  if (step <= state_.newest.step || trained_requests < options_.least_trained_requests)
    return false;
  return state_.trials.empty() ||
         double(trained_requests) >= options_.growth * double(state_.newest.trained_requests);
}

void PrequentialGate::number(Trial& trial, std::int64_t unix_ms) {
  const std::int64_t day = std::max<std::int64_t>(unix_ms, 0) / kDayMs;
  // A clock set back does not give a day's errors back.
  state_.number_in_day = day > state_.day ? 1 : state_.number_in_day + 1;
  state_.day = std::max(state_.day, day);
  trial.number_in_day = state_.number_in_day;
}

std::optional<PrequentialGate::Decision> PrequentialGate::propose(
    std::shared_ptr<const LearnedWeights> weights, const CandidateFacts& facts,
    const RoundCosts& costs, std::int64_t unix_ms) {
  std::optional<Decision> replaced;
  if (state_.trials.size() == kTrials) {
    replaced = decide(state_.trials.front(), unix_ms, "a later snapshot takes its place");
    state_.trials.erase(state_.trials.begin());
    replays_.erase(replays_.begin());
  }
  Trial trial;
  trial.candidate = ++state_.candidates;
  number(trial, unix_ms);
  trial.facts = facts;
  trial.facts.has_head = weights->head != nullptr;
  trial.costs = costs;
  std::map<std::string, int> counts;
  for (const std::string& domain : state_.recent) ++counts[domain];
  for (const auto& [domain, n] : counts) {
    if (n < kExpectedShare * double(state_.recent.size())) continue;
    for (TierScore& tier : trial.tiers) tier.domains.try_emplace(domain);
  }
  state_.newest = trial.facts;
  state_.trials.push_back(std::move(trial));
  start(std::move(weights));
  return replaced;
}

void PrequentialGate::start(std::shared_ptr<const LearnedWeights> candidate) {
  Replays& replays = replays_.emplace_back();
  replays.candidate = std::move(candidate);
  replays.served = replay_of_served();
  for (int i = 0; i < state_.trials.back().tier_count(); ++i) {
    const SpecType all = spec_type("auto");
    replays.tiers[std::size_t(i)] = std::make_unique<PortfolioReplay>(
        Tier(i) == Tier::kHead ? all : all.without(SpeculatorKind::kHead), replays.candidate.get());
  }
}

std::unique_ptr<PortfolioReplay> PrequentialGate::replay_of_served() const {
  return std::make_unique<PortfolioReplay>(spec_type("auto"), served_.get());
}

void PrequentialGate::judge_anew(std::size_t trial, const PortfolioReplay& calibrated) {
  for (TierScore& tier : state_.trials[trial].tiers) {
    std::map<std::string, PairedSums> domains;
    for (const auto& [domain, sums] : tier.domains) domains.try_emplace(domain);
    tier = {};
    tier.domains = std::move(domains);
  }
  auto replay = replay_of_served();
  replay->set_calibration(calibrated.calibration());
  replays_[trial].served = std::move(replay);
}

void PrequentialGate::serve(std::shared_ptr<const LearnedWeights> weights,
                            const PortfolioReplay* calibrated) {
  // The replays speak of the old weights until each has been made anew.
  const auto kept = std::exchange(served_, std::move(weights));
  for (std::size_t i = 0; i < state_.trials.size(); ++i)
    judge_anew(i, calibrated ? *calibrated : *replays_[i].served);
}

void PrequentialGate::set_served(std::shared_ptr<const LearnedWeights> served) {
  serve(std::move(served), nullptr);
}

SequentialTest PrequentialGate::test_of(const Trial& trial, int tier) const {
  SequentialOptions options = options_.test;
  options.alpha = alpha_of_candidate(trial.number_in_day) / trial.tier_count();
  options.most_requests = trial.most_requests();
  SequentialTest test(options);
  test.restore(trial.tiers[std::size_t(tier)].domains);
  return test;
}

PortfolioWalk PrequentialGate::walk(PortfolioReplay& replay, const Trial& trial,
                                    const RequestTrace& trace) const {
  return walk_by_plan(replay, {options_.plan, options_.draft_length, trial.costs}, trace);
}

bool PrequentialGate::is_cold() const { return std::ranges::any_of(replays_, &Replays::cold); }

void PrequentialGate::begin() {
  for (Replays& replays : replays_) replays.cold = false;
}

void PrequentialGate::warm(const RequestTrace& trace) {
  if (trace.gap) return;
  for (std::size_t t = 0; t < state_.trials.size(); ++t) {
    if (!replays_[t].cold) continue;
    walk(*replays_[t].served, state_.trials[t], trace);
    for (int i = 0; i < state_.trials[t].tier_count(); ++i)
      walk(*replays_[t].tiers[std::size_t(i)], state_.trials[t], trace);
  }
}

void PrequentialGate::score(Trial& trial, Replays& replays, const RequestTrace& trace) const {
  const auto usable = [](const PortfolioWalk& walk) {
    // Without features nothing can be said of a head, neither for nor against it.
    return walk.stats.rounds > 0 && walk.rounds_without_features == 0;
  };
  const PortfolioWalk served = walk(*replays.served, trial, trace);
  if (!usable(served)) return;
  for (int i = 0; i < trial.tier_count(); ++i) {
    TierScore& tier = trial.tiers[std::size_t(i)];
    if (tier.verdict != Verdict::kUndecided) continue;
    const PortfolioWalk candidate = walk(*replays.tiers[std::size_t(i)], trial, trace);
    if (!usable(candidate)) continue;
    tier.candidate_rounds += candidate.stats.rounds;
    tier.candidate_emitted += candidate.stats.emitted;
    tier.served_rounds += served.stats.rounds;
    tier.served_emitted += served.stats.emitted;
    SequentialTest test = test_of(trial, i);
    test.add(trace.domain, candidate.predicted_ms, served.predicted_ms);
    tier.domains = test.domains();
    tier.verdict = test.judge().verdict;
  }
}

std::vector<PrequentialGate::Decision> PrequentialGate::score(const RequestTrace& trace,
                                                              std::int64_t unix_ms) {
  state_.recent.push_back(trace.domain);
  if (state_.recent.size() > kRecent) state_.recent.pop_front();
  begin();
  std::vector<Decision> decisions;
  if (trace.gap) return decisions;
  std::optional<std::size_t> promoted;
  double best = 0;
  std::vector<bool> ended(state_.trials.size());
  for (std::size_t t = 0; t < state_.trials.size(); ++t) {
    Trial& trial = state_.trials[t];
    score(trial, replays_[t], trace);
    bool open = false, passed = false;
    for (int i = 0; i < trial.tier_count(); ++i) {
      const Verdict verdict = trial.tiers[std::size_t(i)].verdict;
      open |= verdict == Verdict::kUndecided;
      if (verdict != Verdict::kPromoted) continue;
      passed = true;
      // Of two that pass at once, the faster.
      if (const double gain = test_of(trial, i).judge().all.gain; !promoted || gain > best)
        promoted = t, best = gain;
    }
    ended[t] = !open && !passed;
  }
  for (std::size_t t = 0; t < state_.trials.size(); ++t) {
    if (promoted && t <= *promoted) ended[t] = true;
    if (ended[t] && t != promoted) {
      decisions.push_back(
          decide(state_.trials[t], unix_ms, promoted ? "a better one is promoted" : nullptr));
    }
  }
  std::shared_ptr<const LearnedWeights> served;
  std::unique_ptr<PortfolioReplay> replay;  // the promoted one's
  if (promoted) {
    decisions.push_back(decide(state_.trials[*promoted], unix_ms, nullptr));
    const Tier tier = decisions.back().tier;
    const auto& weights = replays_[*promoted].candidate;
    served = tier == Tier::kHead ? weights : without_head(*weights);
    replay = std::move(replays_[*promoted].tiers[std::size_t(tier)]);
  }
  for (std::size_t t = state_.trials.size(); t-- > 0;) {
    if (!ended[t]) continue;
    state_.trials.erase(state_.trials.begin() + std::ptrdiff_t(t));
    replays_.erase(replays_.begin() + std::ptrdiff_t(t));
  }
  if (promoted) {
    for (Trial& trial : state_.trials) number(trial, unix_ms);
    serve(std::move(served), replay.get());
  }
  return decisions;
}

// ended_by: why the trial ends though it is undecided, if it is.
PrequentialGate::Decision PrequentialGate::decide(const Trial& trial, std::int64_t unix_ms,
                                                  const char* ended_by) const {
  Decision decision;
  CandidateVerdict& record = decision.record;
  record.candidate = trial.candidate;
  record.unix_ms = unix_ms;
  record.step = trial.facts.step;
  std::string text;
  double best = 0;
  bool open = false;
  record.figures.emplace_back("trained_requests", double(trial.facts.trained_requests));
  for (int i = 0; i < trial.tier_count(); ++i) {
    const TierScore& tier = trial.tiers[std::size_t(i)];
    const SequentialFigures figures = test_of(trial, i).judge();
    const std::string tier_name = name(Tier(i));
    record.requests = std::max(record.requests, figures.all.requests);
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", tier_name, text_of(tier, figures));
    const auto put = [&](const std::string& what, double value) {
      if (record.figures.size() < kMaxFigures && std::isfinite(value))
        record.figures.emplace_back(fmt::format("{}.{}", tier_name, what), value);
    };
    put("gain", figures.all.gain);
    put("gain_low", figures.all.low);
    put("gain_high", figures.all.high);
    put("requests", double(figures.all.requests));
    put("tokens_per_round", ratio(tier.candidate_emitted, tier.candidate_rounds));
    put("tokens_per_round_served", ratio(tier.served_emitted, tier.served_rounds));
    for (const DomainFigures& domain : figures.domains) {
      put("gain." + domain_label(domain.domain), domain.gain);
      put("gain_low." + domain_label(domain.domain), domain.low);
    }
    open |= tier.verdict == Verdict::kUndecided;
    if (tier.verdict == Verdict::kPromoted &&
        (decision.verdict != Verdict::kPromoted || figures.all.gain > best)) {
      decision.verdict = Verdict::kPromoted;
      decision.tier = Tier(i);
      best = figures.all.gain;
    } else if (decision.verdict == Verdict::kUndecided) {
      decision.verdict = tier.verdict;
    }
  }
  // Ended from outside: whatever it showed, it is not what is published.
  const bool overtaken = ended_by && (open || decision.verdict == Verdict::kPromoted);
  if (overtaken) decision.verdict = Verdict::kStale;
  const bool promoted = decision.verdict == Verdict::kPromoted;
  const Verdict whole = trial.tiers[std::size_t(trial.tier_count() - 1)].verdict;
  decision.too_little =
      !promoted && !ended_by && (whole == Verdict::kFutile || whole == Verdict::kStale);
  decision.trained_tokens = trial.facts.trained_tokens;
  record.text = fmt::format(
      "{}: {}; predicted time, drafts {} {}, only requests that arrived after the snapshot; "
      "trial {} of the day, error {:.2g} of {}",
      promoted    ? fmt::format("promoted ({})", name(decision.tier))
      : overtaken ? fmt::format("refused ({}: {})", name(decision.verdict), ended_by)
                  : fmt::format("refused ({})", name(decision.verdict)),
      text, options_.plan == RoundPlan::kByCost ? "as long as they pay, up to" : "of",
      options_.draft_length, trial.number_in_day, alpha_of_candidate(trial.number_in_day),
      kErrorsPerDay);
  return decision;
}

std::string PrequentialGate::text_of(const TierScore& score,
                                     const SequentialFigures& figures) const {
  std::string text =
      fmt::format("{}, {}: speed {} over {} requests, tokens a round {:.3f} -> {:.3f}",
                  name(score.verdict), figures.because, percent(figures.all), figures.all.requests,
                  ratio(score.served_emitted, score.served_rounds),
                  ratio(score.candidate_emitted, score.candidate_rounds));
  // A line is read by people: the domains that came most often.
  std::vector<DomainFigures> domains = figures.domains;
  std::sort(domains.begin(), domains.end(),
            [](const auto& a, const auto& b) { return a.requests > b.requests; });
  if (domains.size() > 6) domains.resize(6);
  if (domains.size() > 1) {
    for (std::size_t i = 0; i < domains.size(); ++i) {
      text += fmt::format("{} {} {} ({})", i == 0 ? ":" : ",", domain_label(domains[i].domain),
                          percent(domains[i]), domains[i].requests);
    }
  }
  return text;
}

std::string PrequentialGate::standing() const {
  std::string text;
  for (const Trial& trial : state_.trials) {
    text += fmt::format("{}candidate {}", text.empty() ? "" : "; ", trial.candidate);
    for (int i = 0; i < trial.tier_count(); ++i) {
      const SequentialFigures figures = test_of(trial, i).judge();
      text += fmt::format(", {} {} {} over {} requests", name(Tier(i)), name(figures.verdict),
                          percent(figures.all), figures.all.requests);
    }
  }
  return text.empty() ? "no candidate" : text;
}

void PrequentialGate::restore(
    GateState state, const std::vector<std::shared_ptr<const LearnedWeights>>& candidates) {
  state_ = std::move(state);
  replays_.clear();
  std::vector<Trial> trials = std::exchange(state_.trials, {});
  for (std::size_t i = 0; i < trials.size() && i < candidates.size(); ++i) {
    const auto& weights = candidates[i];
    if (!weights || (weights->head != nullptr) != trials[i].facts.has_head) continue;
    state_.trials.push_back(std::move(trials[i]));
    start(weights);
  }
}

}  // namespace foretoken::trainer
