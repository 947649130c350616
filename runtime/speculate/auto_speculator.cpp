#include "runtime/speculate/auto_speculator.h"

#include <algorithm>

#include "runtime/speculate/cheap_speculators.h"

namespace foretoken {

AutoSpeculator::AutoSpeculator(DraftSources& sources, const AutoSpeculatorOptions& options)
    : sources_(sources),
      options_(options),
      seen_(static_cast<std::size_t>(options.max_sequences), 0) {
  const auto n = static_cast<std::size_t>(options.max_sequences);
  lags_.reserve(n);
  lengths_.reserve(n);
  chosen_.reserve(n);
  model_jobs_.resize(n);
  for (DraftJob& job : model_jobs_) job.draft.reserve(static_cast<std::size_t>(options.max_draft));
}

SpeculatorKind AutoSpeculator::kind() const {
  if (options_.model != nullptr) return SpeculatorKind::kModel;
  return options_.fusion  ? SpeculatorKind::kFusion
         : options_.ngram ? SpeculatorKind::kNgram
                          : SpeculatorKind::kNone;
}

void AutoSpeculator::open(const DraftContext& context) {
  seen_[static_cast<std::size_t>(context.slot)] = 0;
  if (options_.model != nullptr) options_.model->open(context);
}

void AutoSpeculator::close(int slot, bool aborted) {
  if (options_.model != nullptr) options_.model->close(slot, aborted);
}

void AutoSpeculator::propose_cheap(std::span<DraftJob> jobs) {
  if (options_.ngram && options_.fusion) {
    propose_best(sources_, jobs);
  } else if (options_.fusion) {
    FusionSpeculator(sources_).propose(jobs);
  } else if (options_.ngram) {
    NgramSpeculator(sources_).propose(jobs);
  } else {
    for (DraftJob& job : jobs) job.draft.clear();
  }
}

void AutoSpeculator::propose(std::span<DraftJob> jobs) {
  propose_cheap(jobs);
  model_steps_ = 0;
  if (options_.model != nullptr) propose_model(jobs);
}

void AutoSpeculator::propose_model(std::span<DraftJob> jobs) {
  lengths_.assign(jobs.size(), 0);
  if (options_.controller != nullptr) {
    lags_.clear();
    for (const DraftJob& job : jobs) {
      const auto length = static_cast<std::int64_t>(job.context.tokens.size());
      lags_.push_back(length - seen_[static_cast<std::size_t>(job.context.slot)]);
    }
    options_.controller->plan_model(jobs, sources_, lags_, lengths_);
  } else {
    for (std::size_t i = 0; i < jobs.size(); ++i) lengths_[i] = jobs[i].max_tokens;
  }
  chosen_.clear();
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    if (lengths_[i] <= 0) continue;
    DraftJob& job = model_jobs_[chosen_.size()];
    job.context = jobs[i].context;
    job.max_tokens = lengths_[i];
    job.min_survival = jobs[i].min_survival;
    job.draft.clear();
    chosen_.push_back(i);
  }
  if (chosen_.empty()) return;
  options_.model->propose(std::span<DraftJob>(model_jobs_.data(), chosen_.size()));
  for (std::size_t c = 0; c < chosen_.size(); ++c) {
    Draft& draft = model_jobs_[c].draft;
    if (draft.tokens.empty()) continue;  // no room in its cache: the cheap draft stands
    DraftJob& job = jobs[chosen_[c]];
    model_steps_ = std::max(model_steps_, static_cast<int>(draft.tokens.size()));
    seen_[static_cast<std::size_t>(job.context.slot)] =
        static_cast<std::int64_t>(job.context.tokens.size());
    draft.raw = draft.confidences;  // equal lengths: the reserved memory is used again
    for (std::size_t i = 0; i < draft.tokens.size(); ++i) {
      draft.confidences[i] = sources_.calibrate(SpeculatorKind::kModel, job.context, draft.raw[i],
                                                static_cast<int>(i));
    }
    std::swap(job.draft, draft);
  }
}

void AutoSpeculator::observe(const DraftOutcome& outcome) {
  sources_.observe(outcome);
  if (options_.model != nullptr) options_.model->observe(outcome);
}

}  // namespace foretoken
