#include "tests/support/round_replay.h"

#include "foretoken/protocol/failure.h"
#include "runtime/speculate/policy_recorder.h"

namespace foretoken {
namespace {

// Tells again what was told, in the order of asking.
class ToldOffers : public DraftOffers {
 public:
  ToldOffers(std::span<const float> told, std::span<const std::uint8_t> told_as, std::size_t n_jobs)
      : told_(told), told_as_(told_as), model_drafts_(n_jobs) {}

  OfferList offer_cheap(int, std::span<const TokenId>) override {
    OfferList offers;
    for (bool more = true; more;) {
      const Offer offer = next(more);
      if (offer.empty()) break;
      if (offers.size() == kMostKinds) {
        strayed_ = true;
        break;
      }
      offers.push_back(offer);
    }
    return offers;
  }
  float expect_head(int, float) override { return expected(); }
  Offer offer_head(int, std::span<const TokenId>, const Offer&, bool) override {
    bool more = false;
    const Offer offer = next(more);
    strayed_ |= offer.empty() || more;
    return offer;
  }
  float expect_model(int, int) override { return expected(); }
  DraftTree* model_draft(int job) override {
    DraftTree& draft = model_drafts_[std::size_t(job)];
    for (bool more = true; more;) {
      const Offer offer = next(more);
      if (offer.empty()) break;
      draft.push(offer.token, offer.confidence, offer.kind, 0);
    }
    return &draft;
  }
  bool strayed() const { return strayed_ || at_ != told_.size(); }

 private:
  // What was told next; nothing where it was no offer.
  Offer next(bool& more) {
    Offer offer;
    more = false;
    if (at_ == told_.size() || (told_as_[at_] & kToldExpected)) {
      strayed_ = true;
      return offer;
    }
    const int as = told_as_[at_];
    offer.confidence = told_[at_++];
    offer.kind = SpeculatorKind(as & kToldKind);
    offer.ends = as & kToldEnds;
    offer.agrees = as & kToldAgrees;
    more = as & kToldMore;
    return offer;
  }
  float expected() {
    if (at_ == told_.size() || !(told_as_[at_] & kToldExpected)) {
      strayed_ = true;
      return 0;
    }
    return told_[at_++];
  }

  std::span<const float> told_;
  std::span<const std::uint8_t> told_as_;
  std::vector<DraftTree> model_drafts_;
  std::size_t at_ = 0;
  bool strayed_ = false;
};

// Where a round's part of the log's arrays begins.
struct Place {
  std::size_t job = 0, cost = 0, told = 0;
  void pass(const PolicyRound& round) {
    job += std::size_t(round.n_jobs);
    cost += std::size_t(round.n_costs);
    told += std::size_t(round.n_told);
  }
};

RoundChoice replay_round(const PolicyLog& log, const PolicyRound& round, const Place& at) {
  if (round.n_jobs == 0) return {};
  const auto n = std::size_t(round.n_jobs);
  const auto costs_at = log.costs.begin() + std::ptrdiff_t(at.cost);
  const auto seen_at = log.seen.begin() + std::ptrdiff_t(at.cost);
  RoundCosts costs;
  costs.rounds.assign(costs_at, costs_at + round.n_costs);
  costs.seen.assign(seen_at, seen_at + round.n_costs);
  PolicyOptions options{.max_sequences = round.n_jobs};
  PolicyState state;
  state.rates.resize(n + 1);
  each_recorded(round, options, state, costs,
                [](const auto& recorded, auto& own) { own = recorded; });
  DraftPolicy policy(options);
  policy.set_state(state);

  std::vector<DraftTree> drafts(n);
  std::vector<PolicyJob> jobs(n);
  for (std::size_t i = 0; i < n; ++i) {
    const PolicyJobTrace& job = log.jobs[at.job + i];
    jobs[i] = {job.max_tokens, job.n_tokens, job.head_ready, job.model_lag, &drafts[i]};
  }
  const auto n_told = std::size_t(round.n_told);
  ToldOffers offers(std::span(log.told).subspan(at.told, n_told),
                    std::span(log.told_as).subspan(at.told, n_told), n);
  policy.draft(jobs, round.prefill_rows, round.max_extra_rows, costs, offers);
  const DraftTree& draft = drafts[std::size_t(round.job)];
  return {draft.kinds, draft.confidences, policy.head_steps(), policy.cost(), offers.strayed()};
}

}  // namespace

RoundChoice logged_choice(const RequestTrace& trace, std::size_t round) {
  const RoundTrace& logged = trace.rounds[round];
  const PolicyRound& policy = trace.policy.rounds[round];
  return {{logged.kinds.begin(), logged.kinds.end()},
          {logged.confidences.begin(), logged.confidences.end()},
          policy.head_steps,
          policy.cost};
}

Result<std::vector<RoundChoice>> replay_rounds(const RequestTrace& trace) {
  const auto refuse = [&](std::string_view what) {
    return failure(ErrorCode::kUnsupported, "request {}: its {} rounds cannot be chosen again: {}",
                   trace.request.value, trace.rounds.size(), what);
  };
  const PolicyLog& log = trace.policy;
  if (trace.gap) return refuse("the trace has a gap");
  if (log.rounds.empty() && !trace.rounds.empty())
    return refuse("what the draft policy was told is not recorded (a trace of an older build)");
  Place end;
  for (const PolicyRound& round : log.rounds) end.pass(round);
  if (log.rounds.size() != trace.rounds.size() || end.job != log.jobs.size() ||
      end.cost != log.costs.size() || end.cost != log.seen.size() || end.told != log.told.size() ||
      end.told != log.told_as.size())
    return refuse("the record of the draft policy is not whole");
  std::vector<RoundChoice> choices;
  Place at;
  for (const PolicyRound& round : log.rounds) {
    choices.push_back(replay_round(log, round, at));
    at.pass(round);
  }
  return choices;
}

}  // namespace foretoken
