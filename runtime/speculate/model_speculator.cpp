#include "runtime/speculate/model_speculator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "foretoken/kernels/sampling.h"

namespace foretoken {

namespace {
// The draft's own noise under rejection sampling: independent of the target's (sampler.cpp).
constexpr std::uint64_t kDraftKey = 0x9e3779b97f4a7c15ull;
constexpr std::int64_t kSupport = 64;  // tokens a rejection-sampled draft may come from
}  // namespace

ModelSpeculator::ModelSpeculator(std::shared_ptr<const Model> model,
                                 const ModelSpeculatorOptions& options, kernels::ThreadPool& pool)
    : model_(std::move(model)),
      options_(options),
      pool_(pool),
      slots_(std::size_t(options.kv.max_sequences)) {}

Result<std::unique_ptr<ModelSpeculator>> ModelSpeculator::create(
    std::shared_ptr<const Model> model, std::shared_ptr<const KvCalibration> calibration,
    const ModelSpeculatorOptions& options, kernels::ThreadPool& pool) {
  std::unique_ptr<ModelSpeculator> self(new ModelSpeculator(model, options, pool));
  auto kv = model->make_memory(options.kv, std::move(calibration));
  if (!kv) return kv.error();
  self->memory_ = std::move(*kv);
  const int rows = options.kv.max_rows, sequences = options.kv.max_sequences;
  self->workspace_ = model->make_workspace(rows, sequences);
  self->row_tokens_.resize(std::size_t(rows));
  self->groups_.reserve(std::size_t(sequences));
  self->logit_rows_.reserve(std::size_t(sequences));
  self->active_.reserve(std::size_t(sequences));
  if (options.draft_vocab >= 2 * kernels::kPackRows &&
      options.draft_vocab < model->config().n_vocab / 2) {
    auto vocabulary = DraftVocabulary::create(model, options.draft_vocab);
    if (!vocabulary) return vocabulary.error();
    self->vocabulary_ = std::move(*vocabulary);
  }
  self->logits_ =
      model->make_logit_rows(sequences, self->vocabulary_ ? &self->vocabulary_->output() : nullptr);
  return self;
}

void ModelSpeculator::open(const DraftContext& context) {
  Slot& slot = slots_[std::size_t(context.slot)];
  if (slot.kv >= 0) memory_->close(slot.kv);
  slot = {memory_->open().value_or(-1)};
  if (vocabulary_) {
    vocabulary_->see(context.stop_tokens);
    vocabulary_->see(context.tokens);
  }
  if (slot.kv >= 0 && context.chain) {
    memory_->resume(slot.kv, *context.chain, context.n_prompt,
                    std::int64_t(context.tokens.size()) - 1);
  }
}

void ModelSpeculator::close(const DraftContext& context, bool whole) {
  Slot& slot = slots_[std::size_t(context.slot)];
  if (slot.kv >= 0) {
    if (whole && context.chain)
      memory_->close_and_keep(slot.kv, *context.chain);
    else
      memory_->close(slot.kv);
  }
  slot = {};
}

void ModelSpeculator::run(std::span<const KvRows> groups, int n_rows, bool want_logits) {
  ++last_steps_;
  logit_rows_.clear();
  if (want_logits) {
    for (const KvRows& g : groups) logit_rows_.push_back(g.first_row + g.n_rows - 1);
  }
  ForwardBatch batch;
  batch.tokens = std::span<const TokenId>(row_tokens_.data(), std::size_t(n_rows));
  batch.sequences = groups;
  batch.logit_rows = logit_rows_;
  batch.logits = logits_.get();
  if (vocabulary_) batch.output = &vocabulary_->output();
  model_->forward(batch, *memory_, *workspace_, pool_);
}

// Feeds all committed tokens but the last (the first draft step feeds that one). False: no room.
bool ModelSpeculator::catch_up(DraftJob& job) {
  Slot& slot = slots_[std::size_t(job.context.slot)];
  if (slot.kv < 0) return false;
  const auto length = std::int64_t(job.context.tokens.size());
  if (!memory_->reserve(slot.kv, length + job.max_tokens)) return false;
  while (fed(slot) < length - 1) {
    const std::int64_t first = fed(slot);
    const auto n = int(std::min<std::int64_t>(options_.kv.max_rows, length - 1 - first));
    std::copy_n(job.context.tokens.begin() + first, n, row_tokens_.begin());
    const KvRows rows{slot.kv, first, n, 0};
    run({&rows, 1}, n, false);
    memory_->commit(slot.kv, first + n);
  }
  return true;
}

void ModelSpeculator::propose(std::span<DraftJob> jobs) {
  last_steps_ = 0;
  active_.clear();
  int longest = 0;
  for (DraftJob& job : jobs) {
    job.draft.clear();
    if (job.max_tokens <= 0 || !catch_up(job)) continue;
    active_.push_back(&job);
    longest = std::max(longest, job.max_tokens);
  }
  // About a tenth of a draft step of the smallest models.
  constexpr int kRefreshedGroups = 8;
  if (vocabulary_) vocabulary_->refresh(kRefreshedGroups);
  const std::int64_t n_vocab = n_choices();
  const TokenId* names = vocabulary_ ? vocabulary_->tokens().data() : nullptr;
  for (int step = 0; step < longest && !active_.empty(); ++step) {
    groups_.clear();
    int row = 0;
    for (DraftJob* job : active_) {
      const auto length = std::int64_t(job->context.tokens.size());
      row_tokens_[std::size_t(row)] =
          step == 0 ? job->context.tokens.back() : job->draft.tokens.back();
      groups_.push_back({slots_[std::size_t(job->context.slot)].kv, length - 1 + step, 1, row});
      ++row;
    }
    run(groups_, row, true);
    for (std::size_t i = 0; i < active_.size(); ++i) {
      DraftJob& job = *active_[i];
      const SamplingParams& sampling = *job.context.sampling;
      const float* logits = logits_->host_row(int(i)).data();
      const auto position = job.context.tokens.size() + std::size_t(step);  // of the token to draft
      const float inv_temperature = sampling.temperature > 0 ? 1.0f / sampling.temperature : 0.0f;
      TokenId token = 0;
      double confidence = 0;
      if (options_.rejection && inv_temperature > 0) {
        std::int32_t ids[kSupport];
        float values[kSupport];
        const std::int64_t n = kernels::top_k(logits, n_vocab, kSupport, ids, values);
        if (names)
          for (std::int64_t k = 0; k < n; ++k) ids[k] = names[ids[k]];
        const double lse = kernels::log_sum_exp(values, n, inv_temperature);
        token = kernels::sample_subset(values, ids, n, inv_temperature, sampling.seed ^ kDraftKey,
                                       position);
        auto& support = job.draft.support;
        for (std::int64_t k = 0; k < n; ++k) {
          support.emplace_back(ids[k], float(std::exp(double(values[k] * inv_temperature) - lse)));
          if (ids[k] == token) confidence = double(support.back().second);
        }
        job.draft.end_support();
      } else {
        const float scale = inv_temperature > 0 ? inv_temperature : 1.0f;
        float chosen = 0;
        if (!names) {
          token = kernels::sample_full(logits, n_vocab, inv_temperature, sampling.seed, position);
          chosen = logits[token];
        } else if (inv_temperature > 0) {
          token = kernels::sample_subset(logits, names, n_vocab, inv_temperature, sampling.seed,
                                         position);
          chosen = logits[vocabulary_->slot(token)];
        } else {
          const std::int32_t slot = kernels::argmax(logits, n_vocab);
          token = names[slot];
          chosen = logits[slot];
        }
        // Only the draft's length depends on it.
        confidence = std::exp(double(chosen * scale) -
                              kernels::approximate_log_sum_exp(logits, n_vocab, scale));
      }
      job.draft.push(token, float(confidence), SpeculatorKind::kModel, float(confidence));
    }
    std::erase_if(active_,
                  [&](DraftJob* job) { return int(job->draft.tokens.size()) >= job->max_tokens; });
  }
  // In memory now, uncommitted: every drafted token but the last. observe() keeps what held.
  for (DraftJob& job : jobs) {
    if (!job.draft.tokens.empty())
      slots_[std::size_t(job.context.slot)].drafted_at = std::int64_t(job.context.tokens.size());
  }
}

void ModelSpeculator::observe(const DraftOutcome& outcome) {
  if (vocabulary_) vocabulary_->see(outcome.emitted);
  Slot& slot = slots_[std::size_t(outcome.context.slot)];
  if (slot.kv < 0) return;
  // Positions length .. length + d - 2 hold drafted tokens 0 .. d - 2; those that were accepted
  // stay.
  const auto length = std::int64_t(outcome.context.tokens.size());
  if (std::exchange(slot.drafted_at, -1) != length) return;  // not this model's draft
  std::int64_t kept = 0;
  const DraftTree& draft = *outcome.draft;
  for (int i = 0; i + 1 < draft.size() && i < outcome.accepted; ++i) {
    const auto node = std::size_t(i);
    if (draft.kinds[node] != SpeculatorKind::kModel || draft.parents[node] != i - 1) break;
    ++kept;
  }
  memory_->commit(slot.kv, length + kept);
}

}  // namespace foretoken
