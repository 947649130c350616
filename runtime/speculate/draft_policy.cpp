#include "runtime/speculate/draft_policy.h"

#include <algorithm>

#include "foretoken/kernels/splitmix64.h"

namespace foretoken {
namespace {

// A further row costs at least this share of one row's round, whatever noise says: below it a slot
// would need a survival under two in a hundred to lose anything by waiting for better measurements.
constexpr double kMinRowPrice = 0.015;
// The policy's rate is that of its last two hundred rounds or so, and starts as if it had run
// sixteen without speculation.
constexpr double kRateMemory = 200;
constexpr double kRatePrior = 16;
// Law 3 leaves 2 %; exploration takes at most a quarter of it.
constexpr double kProbeShare = 0.005;
constexpr double kExplore = 0.01;         // of rounds: one more slot than pays
constexpr double kExploreUnknown = 0.05;  // while the row count it leads to was seen fewer than
constexpr int kKnownRounds = 8;           // this many times
// A burst of the draft model: enough positions to move its estimates.
constexpr int kProbeRounds = 8;
constexpr int kProbeLength = 2;
// Reading a token into the draft's cache in a batch, against a draft step of one row.
constexpr double kCatchUpRowCost = 0.25;
// A first burst must be affordable within any 2,000 tokens: half a per cent of as many rounds.
constexpr double kFirstProbeBudget = 10;
constexpr double kProbeBudgetCap = 100;
// A first burst of the head: a twentieth of a round a step, so a few rounds' worth.
constexpr double kFirstHeadProbeBudget = 4;

// Trust: pseudo-tokens it starts with, and how many rounds it remembers (at draft length 0 it
// recovers, and what the shadow scores say counts again).
constexpr double kTrustPrior = 4;
constexpr double kTrustMemory = 250;

// What attention reads for one more row: the mean context, in thousands.
double work_per_row(std::span<const PolicyJob> jobs) {
  double sum = 0;
  for (const PolicyJob& job : jobs) sum += double(job.n_tokens);
  return sum / 1000.0 / std::max<double>(1.0, double(jobs.size()));
}

// What `slots` more rows cost, attention aside.
double price(int sequences, int slots, int prefill_rows, const RoundCosts& costs) {
  // Beside a prefill chunk the round is bound by arithmetic: a row costs what it does at the far
  // end.
  const double extra = prefill_rows > 0 ? costs.batch_row * slots
                                        : costs.round(sequences + slots) - costs.round(sequences);
  return std::max(extra, kMinRowPrice * slots * costs.round(1));
}

void push(DraftTree& draft, const Offer& offer) {
  draft.push(offer.token, offer.confidence, offer.kind, offer.raw);
}

}  // namespace

DraftPolicy::DraftPolicy(const PolicyOptions& options)
    : options_(options), scratch_(std::size_t(options.max_sequences)) {
  const auto n = std::size_t(options.max_sequences);
  const auto depth = std::size_t(options.max_draft);
  state_.rates.resize(n + 1);
  state_.random = options.seed * kernels::kSplitMixStep + 1;
  state_.model.budget = kFirstProbeBudget;
  state_.head.budget = kFirstHeadProbeBudget;
  slots_.reserve(n * depth);
  outlook_.reserve(n);
  ready_.resize(n);
  active_.resize(n);
  step_tokens_.resize(n);
  lengths_.resize(n);
  for (Scratch& s : scratch_) {
    s.lifts.resize(depth + 1);
    s.head_positions.reserve(depth);
  }
}

double DraftPolicy::rate(int sequences, const RoundCosts& costs) const {
  const int n = std::clamp(sequences, 1, options_.max_sequences);
  const PolicyState::Rate& r = state_.rates[std::size_t(n)];
  const double plain = costs.round(n);
  const double with_prior = (r.tokens + kRatePrior * n) / (r.cost + kRatePrior * plain);
  return std::max(with_prior, n / plain);
}

double DraftPolicy::trust() const {
  return std::min(1.0, (state_.came_true + kTrustPrior) / (state_.predicted + kTrustPrior));
}

Offer DraftPolicy::choose(const OfferList& offers) {
  Offer best;
  for (const Offer& offer : offers) {
    if (best.empty() || !(best.confidence > offer.confidence)) best = offer;
  }
  return best;
}

void DraftPolicy::extend(DraftOffers& offers, int job, int max_tokens, float min_survival,
                         float survival, DraftTree& draft) {
  while (int(draft.tokens.size()) < max_tokens) {
    const Offer offer = choose(offers.offer_cheap(job, draft.tokens));
    if (offer.empty()) break;
    survival *= offer.confidence;
    if (survival < min_survival) break;
    push(draft, offer);
    if (offer.ends) break;
  }
}

void DraftPolicy::draft(std::span<const PolicyJob> jobs, int prefill_rows, int max_extra_rows,
                        const RoundCosts& costs, DraftOffers& offers) {
  const bool fixed = options_.n_fixed >= 0;
  head_steps_ = 0;
  HeadPlan head;
  bool any_ready = false;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    Scratch& s = scratch_[i];
    s.head_positions.clear();
    s.max_tokens = std::min(jobs[i].max_tokens, fixed ? options_.n_fixed : options_.max_draft);
    ready_[i] = s.max_tokens > 0 && jobs[i].head_ready;
    any_ready |= ready_[i] != 0;
    jobs[i].draft->clear();
    extend(offers, int(i), s.max_tokens, fixed ? 0 : kMinSurvival, 1.0f, *jobs[i].draft);
  }
  // Head and draft model replace a cheap draft where they are expected to be worth their own
  // passes.
  if (any_ready && fixed) head.depth = options_.n_fixed;
  if (any_ready && !fixed) head = plan_head(jobs, costs, offers);
  std::fill(lengths_.begin(), lengths_.end(), 0);
  if (options_.model && !fixed) plan_model(jobs, head.value, costs, offers);
  if (options_.model && fixed) {
    // In turns with the other kinds, so that all are exercised.
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      const bool turn =
          options_.model_alone || jobs[i].draft->tokens.empty() || jobs[i].n_tokens % 2 == 0;
      lengths_[i] = turn ? scratch_[i].max_tokens : 0;
    }
  }
  if (head.depth > 0) {
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      if (lengths_[i] > 0) ready_[i] = 0;
    }
    draft_head(jobs, head.depth, costs, offers);
  }
  const auto lengths = std::span<const int>(lengths_).first(jobs.size());
  if (std::ranges::any_of(lengths, [](int length) { return length > 0; })) {
    offers.draft_model(lengths);
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      DraftTree* drafted = lengths[i] > 0 ? offers.model_draft(int(i)) : nullptr;
      if (drafted && !drafted->tokens.empty()) std::swap(*jobs[i].draft, *drafted);
    }
  }
  if (!fixed) trim(jobs, prefill_rows, max_extra_rows, costs);
  RoundMeasurement chosen;
  chosen.head_steps = head_steps_;
  for (const PolicyJob& job : jobs) {
    const int rows = 1 + int(job.draft->tokens.size());
    chosen.rows += rows;
    chosen.work += rows * double(job.n_tokens) / 1000.0;
  }
  cost_ = costs.of(chosen);
}

int DraftPolicy::best_slots(int sequences, double work_per_slot, int prefill_rows,
                            const RoundCosts& costs, double* value) const {
  const double rate = this->rate(sequences, costs);
  int best = 0;
  double best_value = 0, gain = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    gain += double(slots_[i].survival);
    const int n = int(i) + 1;
    const double cost = price(sequences, n, prefill_rows, costs) + costs.slope * work_per_slot * n;
    if (gain - rate * cost > best_value) {
      best_value = gain - rate * cost;
      best = n;
    }
  }
  if (value != nullptr) *value = best_value;
  return best;
}

void DraftPolicy::collect(std::span<const PolicyJob> jobs) {
  slots_.clear();
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    float survival = float(trust());
    int depth = 0;
    for (float confidence : jobs[i].draft->confidences) {
      if (depth == options_.max_draft) break;
      survival *= confidence;
      slots_.push_back({survival, int(i), depth++});
    }
  }
  sort_slots();
}

// Survival never rises along a draft, so a sequence's slots stay in order.
void DraftPolicy::sort_slots() {
  std::sort(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) {
    if (a.survival != b.survival) return a.survival > b.survival;
    return a.depth != b.depth ? a.depth < b.depth : a.job < b.job;
  });
}

// Shortens the drafts of a round's sequences (all of them, those without a draft included) to what
// pays.
void DraftPolicy::trim(std::span<const PolicyJob> jobs, int prefill_rows, int max_extra_rows,
                       const RoundCosts& costs) {
  if (jobs.empty()) return;
  const int n = int(jobs.size());
  collect(jobs);
  if (int(slots_.size()) > max_extra_rows) slots_.resize(std::size_t(std::max(0, max_extra_rows)));
  int slots = best_slots(n, work_per_row(jobs), prefill_rows, costs, nullptr);
  // Only a row more, so that the cost of the next row count, and of drafting at all, stays known.
  if (slots < int(slots_.size()) && prefill_rows == 0) {
    const bool unknown = costs.times_seen(n + slots + 1) < kKnownRounds;
    const double dearest = kProbeShare / 2 * costs.round(n) / price(n, 1, 0, costs);
    if (kernels::next_uniform(state_.random) <
        std::min(unknown ? kExploreUnknown : kExplore, dearest))
      ++slots;
  }
  for (Scratch& s : scratch_) s.keep = 0;
  state_.predicted_now = 0;
  for (int i = 0; i < slots; ++i) {
    const Slot& slot = slots_[std::size_t(i)];
    ++scratch_[std::size_t(slot.job)].keep;
    state_.predicted_now += double(slot.survival) / trust();
  }
  for (std::size_t i = 0; i < jobs.size(); ++i)
    jobs[i].draft->truncate(std::size_t(scratch_[i].keep));
}

// How many positions the head should draft in this round, given the cheap drafts.
DraftPolicy::HeadPlan DraftPolicy::plan_head(std::span<const PolicyJob> jobs,
                                             const RoundCosts& costs, DraftOffers& offers) {
  HeadPlan plan;
  const int n = int(jobs.size());
  const double rate = this->rate(n, costs);
  const double work = work_per_row(jobs);
  collect(jobs);
  best_slots(n, work, 0, costs, &plan.value);
  const auto believed = float(trust());
  int longest = 0;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    if (!ready_[i]) continue;
    Scratch& s = scratch_[i];
    longest = std::max(longest, s.max_tokens);
    // Past the cheap draft's end nothing is known of what the cheap kinds would say.
    const auto& known = jobs[i].draft->confidences;
    for (std::size_t d = 0; d <= known.size(); ++d)
      s.lifts[d] = offers.expect_head(int(i), d < known.size() ? known[d] : 0.0f);
  }
  for (int depth = 1; depth <= longest; ++depth) {
    slots_.clear();
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      const auto& cheap = jobs[i].draft->confidences;
      const Scratch& s = scratch_[i];
      const auto known = int(cheap.size());
      const int length = ready_[i] ? std::min(s.max_tokens, std::max(depth, known)) : known;
      float survival = believed;
      for (int d = 0; d < length; ++d) {
        const auto at = std::size_t(std::min(d, known));
        survival *= ready_[i] && d < depth ? s.lifts[at] : d < known ? cheap[at] : 0.0f;
        slots_.push_back({survival, int(i), d});
      }
    }
    sort_slots();
    double value = 0;
    best_slots(n, work, 0, costs, &value);
    value -= rate * (costs.head_start + costs.head_step * depth);
    if (value > plan.value) {
      plan.value = value;
      plan.depth = depth;
    }
  }
  if (plan.depth == 0) {
    const double round =
        costs.head_start + costs.head_step * kProbeLength + price(n, n * kProbeLength, 0, costs);
    if (state_.head.rounds_left == 0 && state_.head.budget >= round * kProbeRounds)
      state_.head.rounds_left = kProbeRounds;
    if (state_.head.rounds_left > 0) {
      --state_.head.rounds_left;
      state_.head.budget -= round;
      plan.depth = std::min(kProbeLength, longest);
    }
  }
  return plan;
}

// Whether another step of the head pays for the jobs of outlook_ together.
bool DraftPolicy::another_head_step(std::size_t sequences, int depth,
                                    const RoundCosts& costs) const {
  if (outlook_.empty()) return false;
  const int all = int(sequences), n = int(outlook_.size());
  const double rate = this->rate(all, costs);
  const double row =
      rate * (price(all, n * (depth + 1), 0, costs) - price(all, n * depth, 0, costs)) / n;
  double gain = 0;
  for (const Outlook& job : outlook_) {
    const double survival = trust() * double(job.survival);
    const double with = std::max(0.0, survival * double(job.with_head) - row);
    const double without = std::max(0.0, survival * double(job.without) - row);
    gain += std::max(0.0, with - without);
  }
  return kHeadFurther * gain > rate * costs.head_step;
}

// Drafts up to `depth` positions with the head, for all jobs that are ready_, together. At each
// position the head's proposal stands against the cheap kinds'; whichever is drafted, the head
// reads it next.
void DraftPolicy::draft_head(std::span<const PolicyJob> jobs, int depth, const RoundCosts& costs,
                             DraftOffers& offers) {
  const bool fixed = options_.n_fixed >= 0;
  const float min_survival = fixed ? 0 : kMinSurvival;
  const auto n = jobs.size();
  const auto active = std::span(active_).first(n);
  std::copy_n(ready_.begin(), n, active.begin());
  if (std::ranges::count(active, 1) == 0) return;
  for (std::size_t i = 0; i < n; ++i) {
    if (!active[i]) continue;
    Scratch& s = scratch_[i];
    s.head_draft.clear();
    s.survival = 1;
    s.ended = 0;
    step_tokens_[i] = -1;  // the sequence's newest
  }
  offers.begin_head(active);
  for (int d = 0; d < depth; ++d) {
    offers.step_head(std::span<const TokenId>(step_tokens_).first(n));
    ++head_steps_;
    for (std::size_t i = 0; i < n; ++i) {
      if (!active[i]) continue;
      Scratch& s = scratch_[i];
      const int job = int(i);
      const Offer cheap = choose(offers.offer_cheap(job, s.head_draft.tokens));
      const Offer head = offers.offer_head(job, s.head_draft.tokens, cheap, options_.head_alone);
      const bool taken =
          options_.head_alone || head.agrees || head.confidence + kHeadMargin >= cheap.confidence;
      const Offer& chosen = taken ? head : cheap;
      s.head_positions.push_back({head, chosen.token, cheap});
      s.survival *= chosen.confidence;
      if (s.survival < min_survival) {
        active[i] = 0;
        continue;
      }
      push(s.head_draft, chosen);
      step_tokens_[i] = chosen.token;
      s.ended = chosen.ends;
      active[i] = int(s.head_draft.tokens.size()) < s.max_tokens && !chosen.ends;
    }
    if (std::ranges::count(active, 1) == 0) break;
    if (!fixed && d + 1 < depth) {
      // What the cheap kinds would say next, and what the head is likely to make of it.
      outlook_.clear();
      for (std::size_t i = 0; i < n; ++i) {
        if (!active[i]) continue;
        const int job = int(i);
        const float next =
            choose(offers.offer_cheap(job, scratch_[i].head_draft.tokens)).confidence;
        outlook_.push_back({scratch_[i].survival, offers.expect_head(job, next), next});
      }
      if (!another_head_step(n, d + 1, costs)) break;
    }
    offers.keep_head(active);
  }
  for (std::size_t i = 0; i < n; ++i) {
    if (!ready_[i]) continue;
    Scratch& s = scratch_[i];
    if (!fixed && s.survival >= min_survival && !s.ended)
      extend(offers, int(i), s.max_tokens, min_survival, s.survival, s.head_draft);
    std::swap(*jobs[i].draft, s.head_draft);
  }
}

// Whether the draft model should draft in this round, and how far, given the cheap drafts and what
// the best plan without it is worth: lengths_.
void DraftPolicy::plan_model(std::span<const PolicyJob> jobs, double other_value,
                             const RoundCosts& costs, DraftOffers& offers) {
  if (jobs.empty()) return;
  const int n = int(jobs.size());
  const double rate = this->rate(n, costs);
  const double work = work_per_row(jobs);
  collect(jobs);
  double best_value = 0;
  best_slots(n, work, 0, costs, &best_value);
  best_value = std::max(best_value, other_value);

  // All sequences together, to a common depth: a draft step reads the draft's weights once for all.
  const double step = costs.model_step;
  int best_length = 0;
  if (step > 0) {
    for (Scratch& s : scratch_) s.model_survival = 1;
    double gain = 0;
    int rows = 0;
    for (int depth = 0; depth < options_.max_draft; ++depth) {
      for (std::size_t i = 0; i < jobs.size(); ++i) {
        Scratch& s = scratch_[i];
        if (s.max_tokens <= depth) continue;
        s.model_survival *= double(offers.expect_model(int(i), depth));
        gain += s.model_survival;
        ++rows;
      }
      const double cost = price(n, rows, 0, costs) + costs.slope * work * rows + step * (depth + 1);
      if (gain - rate * cost > best_value) {
        best_value = gain - rate * cost;
        best_length = depth + 1;
      }
    }
  }
  if (best_length == 0) {
    // A burst now and then, paid from a budget that grows by a fixed share of the time, catching up
    // included.
    const double guess = step > 0 ? step : 0.35;  // a draft a third of the target's size
    double catch_up = 0;
    for (const PolicyJob& job : jobs) catch_up += double(job.model_lag) * kCatchUpRowCost * guess;
    const double round = guess * kProbeLength + price(n, n * kProbeLength, 0, costs);
    if (state_.model.rounds_left == 0 && state_.model.budget >= catch_up + round * kProbeRounds)
      state_.model.rounds_left = kProbeRounds;
    if (state_.model.rounds_left > 0) {
      --state_.model.rounds_left;
      state_.model.budget -= catch_up + round;
      best_length = kProbeLength;
    }
  }
  for (std::size_t i = 0; i < jobs.size(); ++i)
    lengths_[i] = std::min(best_length, scratch_[i].max_tokens);
}

void DraftPolicy::observe(const RoundMeasurement& round, const RoundCosts& costs) {
  if (round.prefill_rows > 0 || round.sequences < 1) return;
  const int n = std::min(round.sequences, options_.max_sequences);
  // A budget for one burst in reserve, not for a storm after an hour of quiet.
  for (PolicyState::Probe* probe : {&state_.model, &state_.head})
    probe->budget = std::min(probe->budget + kProbeShare / 2 * costs.round(n), kProbeBudgetCap);
  if (round.control) return;
  state_.predicted = state_.predicted * (1.0 - 1.0 / kTrustMemory) + state_.predicted_now;
  state_.came_true =
      state_.came_true * (1.0 - 1.0 / kTrustMemory) + std::max(0, round.emitted - round.sequences);
  state_.predicted_now = 0;
  PolicyState::Rate& rate = state_.rates[std::size_t(n)];
  const double keep = 1.0 - 1.0 / kRateMemory;
  rate.tokens = rate.tokens * keep + round.emitted;
  rate.cost = costs.of(round, rate.cost * keep);
}

}  // namespace foretoken
