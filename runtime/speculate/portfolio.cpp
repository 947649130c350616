#include "runtime/speculate/portfolio.h"

#include <utility>

namespace foretoken {
namespace {

PolicyOptions policy_of(const PortfolioOptions& o, bool model) {
  return {.max_sequences = o.max_sequences,
          .max_draft = o.max_draft,
          .n_fixed = o.n_fixed,
          .head_alone = o.n_fixed >= 0 && !o.kinds.has(SpeculatorKind::kNgram),
          .model = model,
          .model_alone = o.kinds.only(SpeculatorKind::kModel)};
}

}  // namespace

Portfolio::Portfolio(const PortfolioOptions& options, std::unique_ptr<ModelSpeculator> model,
                     kernels::ThreadPool& pool)
    : DraftSources(options),
      options_(options),
      costs_(options.max_sequences * (options.max_draft + 1)),
      policy_(policy_of(options, model != nullptr)),
      recorder_(options.max_sequences, options.max_draft),
      policy_jobs_(std::size_t(options.max_sequences)),
      job_of_slot_(policy_jobs_.size(), -1),
      step_tokens_(policy_jobs_.size()),
      model_(std::move(model)),
      model_jobs_(policy_jobs_.size()) {
  if (!options.kinds.has(SpeculatorKind::kHead) || options.max_draft == 0) return;
  head_ = std::make_unique<HeadSpeculator>(options.max_sequences, options.target, *options.features,
                                           pool, *options.clock);
}

void Portfolio::open(const DraftContext& context) {
  DraftSources::open(context);
  if (head_) options_.features->forget(context.slot);
  if (model_) model_->open(context);
}

void Portfolio::close(const DraftContext& context, bool whole, bool add_to_store) {
  DraftSources::close(context.slot, add_to_store);
  stores().release(context.store);
  if (model_) model_->close(context, whole);
}

void Portfolio::forget(const std::string& key_id, std::uint64_t owner) {
  DraftSources::forget(key_id);
  if (model_) model_->forget(owner);
}

void Portfolio::draft(std::span<DraftJob> jobs, bool control, int prefill_rows,
                      int max_extra_rows) {
  head_steps_ = draft_steps_ = 0;
  std::ranges::fill(job_of_slot_, -1);
  for (DraftJob& job : jobs) job.draft.clear();
  recorder_.begin_round();
  if (control || options_.max_draft == 0) return;
  begin_round(jobs, options_.kinds);
  bool any_ready = false;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const DraftContext& context = jobs[i].context;
    PolicyJob& job = policy_jobs_[i];
    job.max_tokens = jobs[i].max_tokens;
    job.n_tokens = std::int64_t(context.tokens.size());
    job.head_ready = head_ && job.max_tokens > 0 && head_->ready(context);
    job.model_lag = model_ ? model_->lag(context) : 0;
    job.draft = &jobs[i].draft;
    job_of_slot_[std::size_t(context.slot)] = int(i);
    if (job.head_ready && !any_ready && !costs_.head_measured()) {
      costs_.expect_head(double(context.learned->head->step_bytes()) /
                         double(std::max<std::size_t>(1, options_.model_step_bytes)));
    }
    any_ready |= job.head_ready;
  }
  recorder_.draft(policy_, std::span(policy_jobs_).first(jobs.size()), prefill_rows, max_extra_rows,
                  costs_.costs(), *this);
  head_steps_ = policy_.head_steps();
}

float Portfolio::expect_head(int job, float cheap) {
  return calibration_.expect_head(context(job), cheap);
}

void Portfolio::begin_head(std::span<const std::uint8_t> active) { head_->begin(jobs_, active); }

void Portfolio::step_head(std::span<const TokenId> tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i)
    step_tokens_[i] = tokens[i] < 0 ? context(int(i)).tokens.back() : tokens[i];
  head_->step(std::span<const TokenId>(step_tokens_).first(tokens.size()));
}

Offer Portfolio::offer_head(int job, std::span<const TokenId> drafted, const Offer& cheap,
                            bool alone) {
  const DraftContext& of = context(job);
  const int depth = int(drafted.size());
  const Proposal proposal =
      head_->choose(job, of, candidates(of, drafted), std::int64_t(of.tokens.size()) + depth);
  return calibration_.head_offer(of, at(of.slot).forms, proposal, cheap, alone, depth);
}

void Portfolio::keep_head(std::span<const std::uint8_t> active) { head_->keep(active); }

float Portfolio::expect_model(int job, int depth) {
  return expect({SpeculatorKind::kModel}, context(job), depth);
}

void Portfolio::draft_model(std::span<const int> lengths) {
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    model_jobs_[i].context = jobs_[i].context;
    model_jobs_[i].max_tokens = lengths[i];
  }
  const auto begin = options_.clock->monotonic();
  model_->propose(std::span(model_jobs_).first(lengths.size()));
  draft_steps_ = model_->last_steps();
  draft_model_ms_ = ms_of(options_.clock->monotonic() - begin);
}

DraftTree* Portfolio::model_draft(int job) {
  DraftTree& draft = model_jobs_[std::size_t(job)].draft;
  for (std::size_t depth = 0; depth < draft.tokens.size(); ++depth) {
    draft.confidences[depth] =
        calibrate({SpeculatorKind::kModel}, context(job), draft.raw[depth], int(depth));
  }
  return &draft;
}

void Portfolio::observe(const DraftOutcome& outcome) {
  const int slot = outcome.context.slot;
  if (const int job = std::exchange(job_of_slot_[std::size_t(slot)], -1); job >= 0) {
    calibration_.learn_head(outcome.context, at(slot).forms, policy_.head_positions(job),
                            outcome.emitted);
  }
  commit(outcome.context, outcome.emitted);
  DraftSources::observe(outcome);
  if (model_) model_->observe(outcome);
}

void Portfolio::measured(RoundMeasurement round) {
  if (draft_steps_ > 0) {
    round.draft_steps = draft_steps_;
    round.draft_ms = draft_model_ms_;
  }
  if (head_steps_ > 0) {
    round.head_steps = head_steps_;
    round.head_begin_ms = head_->begin_ms();
    round.head_steps_ms = head_->steps_ms();
  }
  costs_.observe(round);
  policy_.observe(round, costs_.costs());
}

void Portfolio::fill(EngineStats& stats) const {
  stats.traffic_store_entries = stores().entries();
  stats.traffic_store_bytes = std::int64_t(stores().bytes());
  if (model_) stats.draft_kv = model_->kv_stats();
  const int n = std::min(17, costs_.max_rows());
  stats.round_ms_by_rows.resize(std::size_t(n));
  for (int rows = 1; rows <= n; ++rows)
    stats.round_ms_by_rows[std::size_t(rows - 1)] = costs_.round_ms(rows);
  if (costs_.head_measured()) {
    stats.head_start_ms = costs_.costs().head_start * costs_.speed_ms();
    stats.head_step_ms = costs_.costs().head_step * costs_.speed_ms();
  }
}

}  // namespace foretoken
