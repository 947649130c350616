#include "runtime/speculate/portfolio.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "runtime/speculate/cheap_choice.h"

namespace foretoken {
namespace {

DraftSourcesOptions sources_of(const PortfolioOptions& o) {
  DraftSourcesOptions s;
  s.max_sequences = o.max_sequences;
  s.max_draft = o.n_max;
  s.max_tokens = o.max_model_len;
  s.store_bytes = o.store_bytes;
  s.kinds = o.kinds;
  return s;
}
PolicyOptions policy_of(const PortfolioOptions& o, bool model) {
  PolicyOptions p;
  p.max_sequences = o.max_sequences;
  p.max_draft = o.n_max;
  p.n_fixed = o.n_fixed;
  p.head_alone = o.n_fixed >= 0 && !o.kinds.has(SpeculatorKind::kNgram);
  p.model = model;
  p.model_alone = o.kinds.only(SpeculatorKind::kModel);
  return p;
}

}  // namespace

Portfolio::Portfolio(const PortfolioOptions& options, std::unique_ptr<ModelSpeculator> model,
                     kernels::ThreadPool& pool)
    : CheapOffers(own_sources_, options.kinds),
      options_(options),
      own_sources_(sources_of(options)),
      costs_(options.max_sequences * (options.n_max + 1)),
      policy_(policy_of(options, model != nullptr)),
      recorder_(options.max_sequences, options.n_max),
      model_(std::move(model)) {
  const auto n = std::size_t(options.max_sequences);
  policy_jobs_.resize(n);
  job_of_slot_.assign(n, -1);
  model_jobs_.resize(n);
  if (!options.kinds.has(SpeculatorKind::kHead) || options.n_max == 0) return;
  head_ = std::make_unique<HeadSpeculator>(options.max_sequences, options.target, *options.features,
                                           pool, *options.clock);
  step_tokens_.resize(n);
}

void Portfolio::open(const DraftContext& context) {
  sources_.open(context);
  if (head_) options_.features->forget(context.slot);
  if (model_) model_->open(context);
}

void Portfolio::close(const DraftContext& context, bool whole, bool add_to_store) {
  sources_.close(context.slot, add_to_store);
  sources_.stores().release(context.store);
  if (model_) model_->close(context, whole);
}

void Portfolio::forget(const std::string& key_id, std::uint64_t owner) {
  sources_.forget(key_id);
  if (model_) model_->forget(owner);
}

void Portfolio::draft(std::span<DraftJob> jobs, bool control, int prefill_rows,
                      int max_extra_rows) {
  head_steps_ = draft_steps_ = 0;
  draft_model_ms_ = 0;
  std::ranges::fill(job_of_slot_, -1);
  for (DraftJob& job : jobs) job.draft.clear();
  recorder_.begin_round();
  if (control || options_.n_max == 0) return;
  begin_round(jobs);
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
  return lift_.estimate(cheap, context(job).sampling->temperature > 0);
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
  const Proposal proposal = head_->choose(job, of, sources_.candidates(of, drafted),
                                          std::int64_t(of.tokens.size()) + depth);
  Offer offer = head_offer(proposal, cheap, alone, [&](Claim claim, float raw) {
    return sources_.calibrate(claim, of, raw, depth);
  });
  offer.ends = ends(of, offer.token);
  return offer;
}

void Portfolio::keep_head(std::span<const std::uint8_t> active) { head_->keep(active); }

float Portfolio::expect_model(int job, int depth) {
  return sources_.expect({SpeculatorKind::kModel}, context(job), depth);
}

void Portfolio::draft_model(std::span<const int> lengths) {
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    model_jobs_[i].context = jobs_[i].context;
    model_jobs_[i].max_tokens = lengths[i];
  }
  const auto begin = options_.clock->monotonic();
  model_->propose(std::span(model_jobs_).first(lengths.size()));
  draft_steps_ = model_->last_steps();
  draft_model_ms_ =
      std::chrono::duration<double, std::milli>(options_.clock->monotonic() - begin).count();
}

DraftTree* Portfolio::model_draft(int job) {
  DraftTree& draft = model_jobs_[std::size_t(job)].draft;
  for (std::size_t depth = 0; depth < draft.tokens.size(); ++depth) {
    draft.confidences[depth] =
        sources_.calibrate({SpeculatorKind::kModel}, context(job), draft.raw[depth], int(depth));
  }
  return &draft;
}

void Portfolio::observe(const DraftOutcome& outcome) {
  if (const int job = std::exchange(job_of_slot_[std::size_t(outcome.context.slot)], -1);
      job >= 0) {
    // Every position at which the head ran and everything before it was right: what was trimmed
    // away or left to another kind counts as well.
    const auto positions = policy_.head_positions(job);
    const bool sampled = outcome.context.sampling->temperature > 0;
    for (std::size_t d = 0; d < positions.size() && d < outcome.emitted.size(); ++d) {
      const TokenId emitted = outcome.emitted[d];
      const auto& [head, drafted, cheap] = positions[d];
      sources_.score_head(outcome.context, head_claim(head.agrees), head.raw,
                          head.token == emitted);
      lift_.update(cheap.confidence, sampled, drafted == emitted, cheap.token == emitted);
      if (drafted != emitted) break;
    }
  }
  sources_.commit(outcome.context, outcome.emitted);
  sources_.observe(outcome);
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
  stats.traffic_store_entries = sources_.stores().entries();
  stats.traffic_store_bytes = std::int64_t(sources_.stores().bytes());
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
