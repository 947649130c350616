#include "runtime/speculate/policy_recorder.h"

#include <algorithm>

namespace foretoken {
namespace {

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

PolicyRecorder::PolicyRecorder(int max_sequences, int max_draft) {
  const auto jobs = std::size_t(max_sequences), positions = std::size_t(max_draft) + 1;
  log_.jobs.reserve(jobs);
  log_.costs.reserve(jobs * (positions + 2));
  log_.seen.reserve(jobs * (positions + 2));
  // Of one job's position: the cheap kinds' offers, first, before and after a step of the head, and
  // behind its draft; the head's own; what the head is expected to be worth there, twice, and the
  // model; and the model's.
  constexpr std::size_t kToldAtMost = 4 * kMostKinds + 5;
  log_.told.reserve(jobs * positions * kToldAtMost);
  log_.told_as.reserve(jobs * positions * kToldAtMost);
}

void PolicyRecorder::draft(DraftPolicy& policy, std::span<const PolicyJob> jobs, int prefill_rows,
                           int max_extra_rows, const RoundCosts& costs, DraftOffers& offers) {
  const auto n = jobs.size();
  PolicyRound& r = round_;
  r.n_jobs = std::int32_t(n);
  r.prefill_rows = prefill_rows;
  r.max_extra_rows = max_extra_rows;
  each_recorded(r, policy.options(), policy.state(), costs, [](auto& recorded, const auto& own) {
    recorded = std::remove_reference_t<decltype(recorded)>(own);
  });
  log_.jobs.clear();
  for (const PolicyJob& job : jobs) {
    log_.jobs.push_back(
        {job.max_tokens, std::int32_t(job.n_tokens), std::int32_t(job.model_lag), job.head_ready});
  }
  // As far as the policy can look: every job's longest draft, and a burst's two tokens of each.
  const auto rows = std::min(costs.rounds.size(), n * std::size_t(1 + std::max(2, +r.max_draft)));
  log_.costs.assign(costs.rounds.begin(), costs.rounds.begin() + std::ptrdiff_t(rows));
  log_.seen.assign(costs.seen.begin(), costs.seen.begin() + std::ptrdiff_t(rows));
  log_.told.clear();
  log_.told_as.clear();
  offers_ = &offers;
  policy.draft(jobs, prefill_rows, max_extra_rows, costs, *this);
  r.n_costs = std::int32_t(rows);
  r.n_told = std::int32_t(log_.told.size());
  r.cost = policy.cost();
  r.head_steps = policy.head_steps();
}

void PolicyRecorder::append_to(PolicyLog& log, int job) const {
  log.rounds.push_back(round_);
  log.rounds.back().job = job;
  if (round_.n_jobs == 0) return;
  append(log.jobs, log_.jobs);
  append(log.costs, log_.costs);
  append(log.seen, log_.seen);
  append(log.told, log_.told);
  append(log.told_as, log_.told_as);
}

void PolicyRecorder::told(float value, int as) {
  log_.told.push_back(value);
  log_.told_as.push_back(std::uint8_t(as));
}

void PolicyRecorder::told(const Offer& offer, bool more) {
  told(offer.confidence, int(offer.kind) | (offer.ends ? kToldEnds : 0) |
                             (offer.agrees ? kToldAgrees : 0) | (more ? kToldMore : 0));
}

OfferList PolicyRecorder::offer_cheap(int job, std::span<const TokenId> drafted) {
  const OfferList offers = offers_->offer_cheap(job, drafted);
  if (offers.empty()) told(Offer(), false);
  for (const Offer& offer : offers) told(offer, &offer != &offers.back());
  return offers;
}

float PolicyRecorder::expect_head(int job, float cheap) {
  const float expected = offers_->expect_head(job, cheap);
  told(expected, kToldExpected);
  return expected;
}

Offer PolicyRecorder::offer_head(int job, std::span<const TokenId> drafted, const Offer& cheap,
                                 bool alone) {
  const Offer offer = offers_->offer_head(job, drafted, cheap, alone);
  told(offer, false);
  return offer;
}

float PolicyRecorder::expect_model(int job, int depth) {
  const float expected = offers_->expect_model(job, depth);
  told(expected, kToldExpected);
  return expected;
}

DraftTree* PolicyRecorder::model_draft(int job) {
  DraftTree* draft = offers_->model_draft(job);
  const std::size_t n = draft ? draft->tokens.size() : 0;
  if (n == 0) told(Offer(), false);
  for (std::size_t i = 0; i < n; ++i) {
    Offer offer;
    offer.kind = draft->kinds[i];
    offer.confidence = draft->confidences[i];
    told(offer, i + 1 < n);
  }
  return draft;
}

}  // namespace foretoken
