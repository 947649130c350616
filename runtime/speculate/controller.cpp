#include "runtime/speculate/controller.h"

#include <algorithm>
#include <cmath>

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

double context_work(std::span<const DraftJob> jobs) {
  double sum = 0;
  for (const DraftJob& job : jobs) sum += static_cast<double>(job.context.tokens.size());
  return sum / 1000.0 / std::max<double>(1.0, static_cast<double>(jobs.size()));
}

// Trust: pseudo-tokens it starts with, and how many rounds it remembers (at draft length 0 it
// recovers, and what the shadow scores say counts again).
constexpr double kTrustPrior = 4;
constexpr double kTrustMemory = 250;

}  // namespace

Controller::Controller(const ControllerOptions& options)
    : options_(options),
      costs_(options.max_sequences * (options.max_draft + 1)),
      keep_(static_cast<std::size_t>(options.max_sequences)),
      survival_(static_cast<std::size_t>(options.max_sequences)),
      rates_(static_cast<std::size_t>(options.max_sequences) + 1),
      random_(options.seed * kernels::kSplitMixStep + 1),
      probe_budget_(kFirstProbeBudget),
      head_probe_budget_(kFirstHeadProbeBudget) {
  slots_.reserve(static_cast<std::size_t>(options.max_sequences) *
                 static_cast<std::size_t>(options.max_draft));
}

double Controller::uniform() { return kernels::next_uniform(random_); }

double Controller::rate(int sequences) const {
  const int n = std::clamp(sequences, 1, options_.max_sequences);
  const Rate& r = rates_[static_cast<std::size_t>(n)];
  const double plain = costs_.relative(n);
  const double with_prior = (r.tokens + kRatePrior * n) / (r.cost + kRatePrior * plain);
  return std::max(with_prior, n / plain);
}

double Controller::trust() const {
  return std::min(1.0, (came_true_ + kTrustPrior) / (predicted_ + kTrustPrior));
}

double Controller::price(int sequences, int slots, int prefill_rows) const {
  double extra;
  if (prefill_rows > 0) {
    // Beside a prefill chunk the round is bound by arithmetic: a row costs what it does at the far
    // end.
    const int far = costs_.max_rows(), span = std::max(1, far / 2);
    const double row =
        far > 1 ? (costs_.relative(far) - costs_.relative(far - std::min(span, far - 1))) /
                      std::min(span, far - 1)
                : kMinRowPrice;
    extra = row * slots;
  } else {
    extra = costs_.relative(sequences + slots) - costs_.relative(sequences);
  }
  return std::max(extra, kMinRowPrice * slots * costs_.relative(1));
}

int Controller::best_slots(int sequences, double work_per_slot, int prefill_rows,
                           double* value) const {
  const double rate = this->rate(sequences);
  int best = 0;
  double best_value = 0, gain = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    gain += static_cast<double>(slots_[i].survival);
    const int n = static_cast<int>(i) + 1;
    const double cost = price(sequences, n, prefill_rows) + costs_.slope() * work_per_slot * n;
    if (gain - rate * cost > best_value) {
      best_value = gain - rate * cost;
      best = n;
    }
  }
  if (value != nullptr) *value = best_value;
  return best;
}

void Controller::collect(std::span<const DraftJob> jobs) {
  slots_.clear();
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    float survival = static_cast<float>(trust());
    int depth = 0;
    for (float confidence : jobs[i].draft.confidences) {
      if (depth == options_.max_draft) break;
      survival *= confidence;
      slots_.push_back({survival, static_cast<int>(i), depth++});
    }
  }
  sort_slots();
}

// Survival never rises along a draft, so a sequence's slots stay in order.
void Controller::sort_slots() {
  std::sort(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) {
    if (a.survival != b.survival) return a.survival > b.survival;
    return a.depth != b.depth ? a.depth < b.depth : a.job < b.job;
  });
}

void Controller::trim(std::span<DraftJob> jobs, int prefill_rows, int max_extra_rows) {
  if (jobs.empty()) return;
  const int n = static_cast<int>(jobs.size());
  collect(jobs);
  if (static_cast<int>(slots_.size()) > max_extra_rows) {
    slots_.resize(static_cast<std::size_t>(std::max(0, max_extra_rows)));
  }
  int slots = best_slots(n, context_work(jobs), prefill_rows, nullptr);
  // Only a row more, so that the cost of the next row count, and of drafting at all, stays known.
  if (slots < static_cast<int>(slots_.size()) && prefill_rows == 0) {
    const bool unknown = costs_.rounds_at(n + slots + 1) < kKnownRounds;
    const double dearest = kProbeShare / 2 * costs_.relative(n) / price(n, 1, 0);
    if (uniform() < std::min(unknown ? kExploreUnknown : kExplore, dearest)) ++slots;
  }
  std::fill(keep_.begin(), keep_.end(), 0);
  predicted_now_ = 0;
  for (int i = 0; i < slots; ++i) {
    const Slot& slot = slots_[static_cast<std::size_t>(i)];
    ++keep_[static_cast<std::size_t>(slot.job)];
    predicted_now_ += static_cast<double>(slot.survival) / trust();
  }
  for (std::size_t i = 0; i < jobs.size(); ++i)
    jobs[i].draft.truncate(static_cast<std::size_t>(keep_[i]));
}

Controller::HeadPlan Controller::plan_head(std::span<const DraftJob> jobs,
                                           std::span<const std::uint8_t> ready,
                                           const HeadLift& lift) {
  HeadPlan plan;
  if (jobs.empty()) return plan;
  const int n = static_cast<int>(jobs.size());
  const double rate = this->rate(n);
  const double work = context_work(jobs);
  collect(jobs);
  best_slots(n, work, 0, &plan.value);
  const double start = costs_.relative_head_start(), step = costs_.relative_head_step();
  const auto believed = static_cast<float>(trust());
  int longest = 0;
  for (std::size_t i = 0; i < jobs.size(); ++i)
    if (ready[i]) longest = std::max(longest, std::min(jobs[i].max_tokens, options_.max_draft));
  if (longest == 0) return plan;
  for (int depth = 1; depth <= longest; ++depth) {
    slots_.clear();
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      const DraftJob& job = jobs[i];
      const bool sampled = job.context.sampling->temperature > 0;
      const auto known = static_cast<int>(job.draft.confidences.size());
      const int length = ready[i] ? std::min(job.max_tokens, std::max(depth, known))
                                  : std::min(known, options_.max_draft);
      float survival = believed;
      for (int d = 0; d < length && d < options_.max_draft; ++d) {
        // Past the cheap draft's end nothing is known of what the cheap kinds would say.
        const float cheap = d < known ? job.draft.confidences[static_cast<std::size_t>(d)] : 0.0f;
        survival *= ready[i] && d < depth ? lift.estimate(cheap, sampled) : cheap;
        slots_.push_back({survival, static_cast<int>(i), d});
      }
    }
    sort_slots();
    double value = 0;
    best_slots(n, work, 0, &value);
    value -= rate * (start + step * depth);
    if (value > plan.value) {
      plan.value = value;
      plan.depth = depth;
    }
  }
  if (plan.depth == 0) {
    const double round = start + step * kProbeLength + price(n, n * kProbeLength, 0);
    if (head_probe_rounds_left_ == 0 && head_probe_budget_ >= round * kProbeRounds)
      head_probe_rounds_left_ = kProbeRounds;
    if (head_probe_rounds_left_ > 0) {
      --head_probe_rounds_left_;
      head_probe_budget_ -= round;
      plan.depth = std::min(kProbeLength, longest);
    }
  }
  return plan;
}

bool Controller::another_head_step(int sequences, int depth,
                                   std::span<const HeadOutlook> jobs) const {
  if (jobs.empty()) return false;
  const double rate = this->rate(sequences);
  const int n = static_cast<int>(jobs.size());
  const double row =
      rate * (price(sequences, n * (depth + 1), 0) - price(sequences, n * depth, 0)) / n;
  double gain = 0;
  for (const HeadOutlook& job : jobs) {
    const double survival = trust() * static_cast<double>(job.survival);
    const double with = std::max(0.0, survival * static_cast<double>(job.with_head) - row);
    const double without = std::max(0.0, survival * static_cast<double>(job.without) - row);
    gain += std::max(0.0, with - without);
  }
  return kHeadFurther * gain > rate * costs_.relative_head_step();
}

void Controller::plan_model(std::span<const DraftJob> jobs, const DraftSources& sources,
                            std::span<const std::int64_t> lags, std::span<int> lengths,
                            double other_value) {
  std::fill(lengths.begin(), lengths.end(), 0);
  if (jobs.empty()) return;
  const int n = static_cast<int>(jobs.size());
  const double rate = this->rate(n);
  const double work = context_work(jobs);
  collect(jobs);
  double cheap_value = 0;
  best_slots(n, work, 0, &cheap_value);
  cheap_value = std::max(cheap_value, other_value);

  // All sequences together, to a common depth: a draft step reads the draft's weights once for all.
  const double step = costs_.relative_draft_step(SpeculatorKind::kModel);
  int best_length = 0;
  double best_value = cheap_value;
  if (step > 0) {
    std::fill(survival_.begin(), survival_.end(), 1.0);
    double gain = 0;
    int rows = 0;
    for (int depth = 0; depth < options_.max_draft; ++depth) {
      for (std::size_t i = 0; i < jobs.size(); ++i) {
        if (jobs[i].max_tokens <= depth) continue;
        survival_[i] *= static_cast<double>(sources.expect(Claim::kModel, jobs[i].context, depth));
        gain += survival_[i];
        ++rows;
      }
      const double cost = price(n, rows, 0) + costs_.slope() * work * rows + step * (depth + 1);
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
    for (std::int64_t lag : lags) catch_up += static_cast<double>(lag) * kCatchUpRowCost * guess;
    const double round = guess * kProbeLength + price(n, n * kProbeLength, 0);
    if (probe_rounds_left_ == 0 && probe_budget_ >= catch_up + round * kProbeRounds) {
      probe_rounds_left_ = kProbeRounds;
    }
    if (probe_rounds_left_ > 0) {
      --probe_rounds_left_;
      probe_budget_ -= catch_up + round;
      best_length = kProbeLength;
    }
  }
  for (std::size_t i = 0; i < jobs.size(); ++i)
    lengths[i] = std::min(best_length, jobs[i].max_tokens);
}

void Controller::observe(const RoundMeasurement& round) {
  if (round.prefill_rows > 0 || round.sequences < 1) return;
  costs_.observe(round.rows, round.work, round.verify_ms);
  if (round.draft_steps > 0)
    costs_.observe_draft(round.draft_kind, round.draft_steps, round.draft_ms);
  if (round.head_steps > 0)
    costs_.observe_head(round.head_begin_ms, round.head_steps, round.head_steps_ms);
  const int n = std::min(round.sequences, options_.max_sequences);
  // A budget for one burst in reserve, not for a storm after an hour of quiet.
  probe_budget_ = std::min(probe_budget_ + kProbeShare / 2 * costs_.relative(n), kProbeBudgetCap);
  head_probe_budget_ =
      std::min(head_probe_budget_ + kProbeShare / 2 * costs_.relative(n), kProbeBudgetCap);
  if (round.control) return;
  predicted_ = predicted_ * (1.0 - 1.0 / kTrustMemory) + predicted_now_;
  came_true_ =
      came_true_ * (1.0 - 1.0 / kTrustMemory) + std::max(0, round.emitted - round.sequences);
  predicted_now_ = 0;
  Rate& rate = rates_[static_cast<std::size_t>(n)];
  const double keep = 1.0 - 1.0 / kRateMemory;
  rate.tokens = rate.tokens * keep + round.emitted;
  rate.cost = rate.cost * keep + costs_.relative(round.rows, round.work) +
              costs_.relative_draft_step(round.draft_kind) * round.draft_steps +
              (round.head_steps > 0
                   ? costs_.relative_head_start() + costs_.relative_head_step() * round.head_steps
                   : 0.0);
}

}  // namespace foretoken
