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

Portfolio::Portfolio(const PortfolioOptions& options, std::unique_ptr<ModelSpeculator> model)
    : options_(options),
      sources_(sources_of(options)),
      ngram_(sources_),
      fusion_(sources_),
      model_(std::move(model)),
      controller_(controller_of(options)) {
  const auto n = std::size_t(options.max_sequences);
  lags_.resize(n);
  lengths_.resize(n);
  model_jobs_.resize(n);
}

void Portfolio::open(const DraftContext& context) {
  sources_.open(context);
  if (model_) model_->open(context);
}

void Portfolio::close(const DraftContext& context, bool add_to_store) {
  sources_.close(context.slot, add_to_store);
  sources_.stores().release(context.store);
  if (model_) model_->close(context.slot, !add_to_store);
}

void Portfolio::draft(std::span<DraftJob> jobs, bool control, int prefill_rows,
                      int max_extra_rows) {
  draft_steps_ = 0;
  draft_model_ms_ = 0;
  for (DraftJob& job : jobs) job.draft.clear();
  if (control || options_.n_max == 0) return;
  if (options_.n_fixed >= 0) {
    for (DraftJob& job : jobs) {
      job.max_tokens = std::min(job.max_tokens, options_.n_fixed);
      job.min_survival = 0;
    }
  }
  if (options_.ngram && options_.fusion) {
    propose_best(sources_, jobs);
  } else if (options_.ngram) {
    ngram_.propose(jobs);
  } else if (options_.fusion) {
    fusion_.propose(jobs);
  }
  if (model_) draft_model(jobs);
  if (options_.n_fixed < 0) controller_.trim(jobs, prefill_rows, max_extra_rows);
}

// The draft model replaces a cheap draft where it is expected to be worth its own passes.
void Portfolio::draft_model(std::span<DraftJob> jobs) {
  const bool alone = !options_.ngram && !options_.fusion;
  if (options_.n_fixed >= 0) {
    // Fixed lengths: always, or in turns with the cheap kinds so that both are exercised.
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      const bool turn =
          alone || jobs[i].draft.tokens.empty() || jobs[i].context.tokens.size() % 2 == 0;
      lengths_[i] = turn ? jobs[i].max_tokens : 0;
    }
  } else {
    for (std::size_t i = 0; i < jobs.size(); ++i) lags_[i] = model_->lag(jobs[i].context);
    controller_.plan_model(jobs, sources_, std::span(lags_).first(jobs.size()),
                           std::span(lengths_).first(jobs.size()));
  }
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
    Draft& draft = model_jobs_[i].draft;
    if (model_jobs_[i].max_tokens == 0 || draft.tokens.empty()) continue;
    for (std::size_t depth = 0; depth < draft.tokens.size(); ++depth) {
      draft.confidences[depth] =
          sources_.calibrate(SpeculatorKind::kModel, jobs[i].context, draft.raw[depth], int(depth));
    }
    std::swap(jobs[i].draft, draft);
  }
}

void Portfolio::observe(const DraftOutcome& outcome) {
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
}

}  // namespace foretoken
