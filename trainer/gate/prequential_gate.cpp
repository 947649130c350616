#include "trainer/gate/prequential_gate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

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
    : options_(options), costs_(RoundCosts::typical()), served_(std::move(served)) {}

void PrequentialGate::propose(std::shared_ptr<const LearnedWeights> weights,
                              const CandidateFacts& facts, std::int64_t unix_ms) {
  candidate_ = std::move(weights);
  ++state_.candidates;
  const std::int64_t day = std::max<std::int64_t>(unix_ms, 0) / kDayMs;
  // A clock set back does not give a day's errors back.
  state_.number_in_day = day > state_.day ? 1 : state_.number_in_day + 1;
  state_.day = std::max(state_.day, day);
  state_.has_candidate = true;
  state_.facts = facts;
  state_.facts.has_head = candidate_->head != nullptr;
  state_.costs = costs_;
  state_.tiers = {};
  std::map<std::string, int> counts;
  for (const std::string& domain : state_.recent) ++counts[domain];
  for (const auto& [domain, n] : counts) {
    if (n < kExpectedShare * double(state_.recent.size())) continue;
    for (TierScore& tier : state_.tiers) tier.domains.try_emplace(domain);
  }
  start_replays();
}

void PrequentialGate::start_replays() {
  served_replay_.reset();
  candidate_replays_ = {};
  if (!state_.has_candidate) return;
  served_replay_ = std::make_unique<PortfolioReplay>(
      PortfolioReplay::Kinds{true, true, served_->head != nullptr}, served_.get());
  for (int i = 0; i < tiers(); ++i) {
    candidate_replays_[std::size_t(i)] = std::make_unique<PortfolioReplay>(
        PortfolioReplay::Kinds{true, true, Tier(i) == Tier::kHead}, candidate_.get());
  }
}

void PrequentialGate::set_served(std::shared_ptr<const LearnedWeights> served) {
  served_ = std::move(served);
  if (!state_.has_candidate) return;
  for (TierScore& tier : state_.tiers) {
    std::map<std::string, PairedSums> domains;
    for (const auto& [domain, sums] : tier.domains) domains.try_emplace(domain);
    tier = {};
    tier.domains = std::move(domains);
  }
  start_replays();
}

int PrequentialGate::most_requests() const {
  return static_cast<int>(
      std::clamp<std::int64_t>(state_.facts.trained_requests, kFewestRequests, kMostRequests));
}

SequentialTest PrequentialGate::test_of(int tier) const {
  SequentialOptions options = options_.test;
  options.alpha = alpha_of_candidate(state_.number_in_day) / tiers();
  options.most_requests = most_requests();
  SequentialTest test(options);
  test.restore(state_.tiers[std::size_t(tier)].domains);
  return test;
}

std::optional<PrequentialGate::Decision> PrequentialGate::score(const RequestTrace& trace,
                                                                std::int64_t unix_ms) {
  state_.recent.push_back(trace.domain);
  if (state_.recent.size() > kRecent) state_.recent.pop_front();
  if (!state_.has_candidate || trace.gap) return std::nullopt;
  const auto usable = [](const PortfolioWalk& walk) {
    // Without features nothing can be said of a head, neither for nor against it.
    return walk.stats.rounds > 0 && walk.rounds_without_features == 0;
  };
  const auto walk = [&](PortfolioReplay& replay) {
    return walk_by_plan(replay, {options_.plan, options_.draft_length, state_.costs}, trace);
  };
  const PortfolioWalk served = walk(*served_replay_);
  if (!usable(served)) return std::nullopt;
  bool open = false, passed = false;
  for (int i = 0; i < tiers(); ++i) {
    TierScore& tier = state_.tiers[std::size_t(i)];
    if (tier.verdict == Verdict::kUndecided) {
      const PortfolioWalk candidate = walk(*candidate_replays_[std::size_t(i)]);
      if (usable(candidate)) {
        tier.candidate_rounds += candidate.stats.rounds;
        tier.candidate_emitted += candidate.stats.emitted;
        tier.served_rounds += served.stats.rounds;
        tier.served_emitted += served.stats.emitted;
        SequentialTest test = test_of(i);
        test.add(trace.domain, candidate.predicted_ms, served.predicted_ms);
        tier.domains = test.domains();
        tier.verdict = test.judge().verdict;
      }
    }
    open |= tier.verdict == Verdict::kUndecided;
    passed |= tier.verdict == Verdict::kPromoted;
  }
  if (open && !passed) return std::nullopt;
  return decide(unix_ms);
}

PrequentialGate::Decision PrequentialGate::decide(std::int64_t unix_ms) {
  Decision decision;
  CandidateVerdict& record = decision.record;
  record.candidate = state_.candidates;
  record.unix_ms = unix_ms;
  record.step = state_.facts.step;
  std::string text;
  double best = 0;
  for (int i = 0; i < tiers(); ++i) {
    const TierScore& tier = state_.tiers[std::size_t(i)];
    const SequentialFigures figures = test_of(i).judge();
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
    if (tier.verdict == Verdict::kPromoted &&
        (decision.verdict != Verdict::kPromoted || figures.all.gain > best)) {
      decision.verdict = Verdict::kPromoted;
      decision.tier = Tier(i);
      best = figures.all.gain;
    } else if (decision.verdict == Verdict::kUndecided) {
      decision.verdict = tier.verdict;
    }
  }
  const bool promoted = decision.verdict == Verdict::kPromoted;
  record.text = fmt::format(
      "{}: {}; predicted time, drafts {} {}, only requests that arrived after the snapshot; "
      "candidate {} of the day, error {:.2g} of {}",
      promoted ? fmt::format("promoted ({})", name(decision.tier))
               : fmt::format("refused ({})", name(decision.verdict)),
      text, options_.plan == RoundPlan::kByCost ? "as long as they pay, up to" : "of",
      options_.draft_length, state_.number_in_day, alpha_of_candidate(state_.number_in_day),
      kErrorsPerDay);
  if (promoted) served_ = decision.tier == Tier::kHead ? candidate_ : without_head(*candidate_);
  state_.has_candidate = false;
  state_.tiers = {};
  start_replays();
  candidate_.reset();
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
  if (!state_.has_candidate) return "no candidate";
  std::string text = fmt::format("candidate {}", state_.candidates);
  for (int i = 0; i < tiers(); ++i) {
    const SequentialFigures figures = test_of(i).judge();
    text += fmt::format(", {} {} {} over {} requests", name(Tier(i)), name(figures.verdict),
                        percent(figures.all), figures.all.requests);
  }
  return text;
}

void PrequentialGate::restore(GateState state, std::shared_ptr<const LearnedWeights> candidate) {
  state_ = std::move(state);
  candidate_ = std::move(candidate);
  if (!candidate_ || (candidate_->head != nullptr) != state_.facts.has_head) {
    state_.has_candidate = false;
    state_.tiers = {};
    candidate_.reset();
  }
  start_replays();
}

}  // namespace foretoken::trainer
