#include "runtime/speculate/portfolio.h"

#include <algorithm>
#include <chrono>

namespace foretoken {
namespace {

DraftSourcesOptions sources_of(const PortfolioOptions& o) {
  DraftSourcesOptions s;
  s.max_sequences = o.max_sequences;
  s.max_draft = o.n_max;
  s.max_tokens = o.max_model_len;
  s.store_bytes = o.store_bytes;
  return s;
}
ControllerOptions controller_of(const PortfolioOptions& o) {
  ControllerOptions c;
  c.max_sequences = o.max_sequences;
  c.max_draft = o.n_max;
  return c;
}

}  // namespace

Portfolio::Portfolio(const PortfolioOptions& options, std::unique_ptr<ModelSpeculator> model,
                     kernels::ThreadPool& pool)
    : options_(options),
      sources_(sources_of(options)),
      model_(std::move(model)),
      controller_(controller_of(options)) {
  const auto n = std::size_t(options.max_sequences);
  lags_.resize(n);
  lengths_.resize(n);
  model_jobs_.resize(n);
  if (!options.head || options.n_max == 0) return;
  head_ = std::make_unique<HeadSpeculator>(options.max_sequences, options.hidden, pool);
  head_records_.resize(n);
  head_jobs_.resize(n);
  ready_.resize(n);
  active_.resize(n);
  step_tokens_.resize(n);
  survival_.resize(n);
  outlook_.reserve(n);
  for (auto& records : head_records_) records.reserve(std::size_t(options.n_max));
}

void Portfolio::open(const DraftContext& context) {
  sources_.open(context);
  if (head_) head_->forget(context.slot);
  if (model_) model_->open(context);
}

void Portfolio::close(const DraftContext& context, bool whole, bool add_to_store) {
  sources_.close(context.slot, add_to_store);
  sources_.stores().release(context.store);
  if (model_) model_->close(context, whole);
}

void Portfolio::forget(const std::string& key_id, std::uint64_t owner) {
  sources_.stores().forget(key_id);
  if (model_) model_->forget(owner);
}

void Portfolio::draft(std::span<DraftJob> jobs, bool control, int prefill_rows,
                      int max_extra_rows) {
  head_steps_ = 0;
  draft_steps_ = 0;
  draft_model_ms_ = 0;
  for (DraftJob& job : jobs) {
    job.draft.clear();
    if (head_) head_records_[std::size_t(job.context.slot)].clear();
  }
  if (control || options_.n_max == 0) return;
  if (options_.n_fixed >= 0) {
    for (DraftJob& job : jobs) {
      job.max_tokens = std::min(job.max_tokens, options_.n_fixed);
      job.min_survival = 0;
    }
  }
  for (DraftJob& job : jobs) extend_cheap(sources_, cheap(), job, 1.0f);
  plan(jobs);
  if (options_.n_fixed < 0) controller_.trim(jobs, prefill_rows, max_extra_rows);
}

// Head and draft model replace a cheap draft where they are expected to be worth their own passes.
void Portfolio::plan(std::span<DraftJob> jobs) {
  const bool fixed = options_.n_fixed >= 0;
  Controller::HeadPlan head;
  bool any = false;
  for (std::size_t i = 0; i < jobs.size() && head_; ++i) {
    ready_[i] = jobs[i].max_tokens > 0 && head_->ready(jobs[i].context);
    if (ready_[i] && !any && !controller_.costs().head_measured()) {
      controller_.costs().expect_head(double(jobs[i].context.learned->head->step_bytes()) /
                                      double(std::max<std::size_t>(1, options_.model_step_bytes)));
    }
    any |= ready_[i] != 0;
  }
  if (any) {
    if (fixed)
      head.depth = options_.n_fixed;
    else
      head = controller_.plan_head(jobs, std::span(ready_).first(jobs.size()), lift_);
  }
  std::ranges::fill(lengths_, 0);
  if (model_) {
    if (fixed) {
      // In turns with the other kinds, so that all are exercised.
      const bool alone = !options_.ngram && !options_.fusion;
      for (std::size_t i = 0; i < jobs.size(); ++i) {
        const bool turn =
            alone || jobs[i].draft.tokens.empty() || jobs[i].context.tokens.size() % 2 == 0;
        lengths_[i] = turn ? jobs[i].max_tokens : 0;
      }
    } else {
      for (std::size_t i = 0; i < jobs.size(); ++i) lags_[i] = model_->lag(jobs[i].context);
      controller_.plan_model(jobs, sources_, std::span(lags_).first(jobs.size()),
                             std::span(lengths_).first(jobs.size()), head.value);
    }
  }
  if (head.depth > 0) {
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      if (lengths_[i] > 0) ready_[i] = 0;
    }
    draft_head(jobs, head.depth);
  }
  if (model_) draft_model(jobs);
}

// Drafts up to `depth` positions with the head, for all jobs that are ready_, together. At each
// position the head's proposal stands against the cheap kinds' by calibrated confidence; whichever
// is drafted, the head reads it next. With a fixed length of one kind (--spec-type head) the head's
// is taken always, so that a replay of the log at that length is the same walk.
void Portfolio::draft_head(std::span<DraftJob> jobs, int depth) {
  const bool fixed = options_.n_fixed >= 0;
  const bool pure = fixed && !options_.ngram;
  const auto n = jobs.size();
  std::size_t n_active = 0;
  for (std::size_t i = 0; i < n; ++i) {
    active_[i] = ready_[i];
    n_active += ready_[i];
    if (!active_[i]) continue;
    DraftJob& job = head_jobs_[i];
    job.context = jobs[i].context;
    job.max_tokens = jobs[i].max_tokens;
    job.min_survival = jobs[i].min_survival;
    job.draft.clear();
    survival_[i] = 1;
  }
  if (n_active == 0) return;
  head_->begin(jobs, std::span(active_).first(n));
  for (int d = 0; d < depth && n_active > 0; ++d) {
    for (std::size_t i = 0; i < n; ++i) {
      if (!active_[i]) continue;
      step_tokens_[i] = d == 0 ? jobs[i].context.tokens.back() : head_jobs_[i].draft.tokens.back();
    }
    head_->step(std::span<const TokenId>(step_tokens_).first(n));
    outlook_.clear();
    for (std::size_t i = 0; i < n; ++i) {
      if (!active_[i]) continue;
      DraftJob& job = head_jobs_[i];
      const DraftContext& context = job.context;
      const auto drafted = [&] { return std::span<const TokenId>(job.draft.tokens); };
      const CheapChoice other = choose_cheap(sources_, cheap(), context, drafted());
      const Proposal proposal =
          head_->choose(int(i), context, sources_.candidates(context, drafted()),
                        std::int64_t(context.tokens.size()) + d);
      const HeadChoice choice = choose_head(proposal, other, pure, [&](Claim claim, float raw) {
        return sources_.calibrate(claim, context, raw, d);
      });
      const TokenId token = choice.taken ? proposal.token : other.proposal.token;
      head_records_[std::size_t(context.slot)].push_back({choice.claim, proposal.token,
                                                          proposal.raw, token, other.proposal.token,
                                                          other.confidence});
      const float chosen = choice.taken ? choice.confidence : other.confidence;
      survival_[i] *= chosen;
      if (survival_[i] < job.min_survival) {
        active_[i] = 0;
        continue;
      }
      job.draft.push(token, chosen, choice.taken ? SpeculatorKind::kHead : other.kind,
                     choice.taken ? proposal.raw : other.proposal.raw);
      const auto& stops = context.stop_tokens;
      active_[i] = int(job.draft.tokens.size()) < job.max_tokens &&
                   std::ranges::find(stops, token) == stops.end();
    }
    n_active = std::size_t(std::ranges::count(std::span(active_).first(n), 1));
    if (!fixed && d + 1 < depth) {
      // What the cheap kinds would say next, and what the head is likely to make of it.
      for (std::size_t i = 0; i < n; ++i) {
        if (!active_[i]) continue;
        const DraftContext& context = head_jobs_[i].context;
        const CheapChoice next =
            choose_cheap(sources_, cheap(), context, head_jobs_[i].draft.tokens);
        const float with = lift_.estimate(next.confidence, context.sampling->temperature > 0);
        outlook_.push_back({survival_[i], with, next.confidence});
      }
      if (!controller_.another_head_step(int(n), d + 1, outlook_)) break;
    }
    head_->keep(std::span<const std::uint8_t>(active_).first(n));
  }
  head_steps_ = head_->steps();
  for (std::size_t i = 0; i < n; ++i) {
    if (!ready_[i]) continue;
    if (!fixed && survival_[i] >= head_jobs_[i].min_survival)
      extend_cheap(sources_, cheap(), head_jobs_[i], survival_[i]);
    std::swap(jobs[i].draft, head_jobs_[i].draft);
  }
}

void Portfolio::draft_model(std::span<DraftJob> jobs) {
  bool any = false;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    model_jobs_[i].context = jobs[i].context;
    model_jobs_[i].max_tokens = std::min(lengths_[i], jobs[i].max_tokens);
    any |= model_jobs_[i].max_tokens > 0;
  }
  if (!any) return;
  const auto begin = std::chrono::steady_clock::now();
  model_->propose(std::span(model_jobs_).first(jobs.size()));
  draft_steps_ = model_->last_steps();
  draft_model_ms_ =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    DraftTree& draft = model_jobs_[i].draft;
    if (model_jobs_[i].max_tokens == 0 || draft.tokens.empty()) continue;
    for (std::size_t depth = 0; depth < draft.tokens.size(); ++depth) {
      draft.confidences[depth] =
          sources_.calibrate(Claim::kModel, jobs[i].context, draft.raw[depth], int(depth));
    }
    std::swap(jobs[i].draft, draft);
  }
}

void Portfolio::observe(const DraftOutcome& outcome) {
  if (head_) {
    // Every position at which the head ran and everything before it was right: what was trimmed
    // away or left to another kind counts as well.
    const auto& records = head_records_[std::size_t(outcome.context.slot)];
    const bool sampled = outcome.context.sampling->temperature > 0;
    for (std::size_t d = 0; d < records.size() && d < outcome.emitted.size(); ++d) {
      const TokenId emitted = outcome.emitted[d];
      sources_.score_head(outcome.context, records[d].claim, records[d].raw,
                          records[d].token == emitted);
      lift_.update(records[d].cheap, sampled, records[d].drafted == emitted,
                   records[d].cheap_token == emitted);
      if (records[d].drafted != emitted) break;
    }
    head_records_[std::size_t(outcome.context.slot)].clear();
  }
  sources_.commit(outcome.context, outcome.emitted);
  sources_.observe(outcome);
  if (model_) model_->observe(outcome);
}

void Portfolio::measured(RoundMeasurement round) {
  if (draft_steps_ > 0) {
    round.draft_kind = SpeculatorKind::kModel;
    round.draft_steps = draft_steps_;
    round.draft_ms = draft_model_ms_;
  }
  if (head_steps_ > 0) {
    round.head_steps = head_steps_;
    round.head_begin_ms = head_->begin_ms();
    round.head_steps_ms = head_->steps_ms();
  }
  controller_.observe(round);
}

void Portfolio::fill(EngineStats& stats) const {
  stats.traffic_store_entries = sources_.stores().entries();
  stats.traffic_store_bytes = std::int64_t(sources_.stores().bytes());
  if (model_) stats.draft_kv = model_->kv_stats();
  const int n = std::min(17, controller_.costs().max_rows());
  stats.round_ms_by_rows.resize(std::size_t(n));
  for (int rows = 1; rows <= n; ++rows)
    stats.round_ms_by_rows[std::size_t(rows - 1)] = controller_.costs().round_ms(rows);
  const CostModel& costs = controller_.costs();
  if (costs.head_measured()) {
    stats.head_start_ms = costs.relative_head_start() * costs.speed_ms();
    stats.head_step_ms = costs.relative_head_step() * costs.speed_ms();
  }
}

}  // namespace foretoken
