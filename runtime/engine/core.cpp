#include "runtime/engine/core.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "foretoken/kernels/sampling.h"
#include "runtime/speculate/model_speculator.h"

namespace foretoken {
namespace {

constexpr std::int64_t kDefaultContext = 8192;

// Room for every slot's longest sequence would be the safe default; the pool is capped so that a
// default start fits a small machine, and preemption covers the rest.
std::size_t default_kv_memory(const KvGeometry& g, std::int64_t max_model_len, int max_num_seqs) {
  const std::size_t per_token =
      std::size_t(g.n_layers) * std::size_t(g.n_kv_heads) * std::size_t(g.head_dim) * 4;
  const std::size_t all = per_token * std::size_t(max_model_len) * std::size_t(max_num_seqs);
  return std::min(all, std::max(std::size_t(1) << 30, per_token * std::size_t(max_model_len)));
}

std::uint64_t owner_of(const std::string& key_id) {
  const PageHash hash = hash_bytes(key_id);
  std::uint64_t owner;
  std::memcpy(&owner, hash.data(), sizeof owner);
  return owner;
}

}  // namespace

EngineCore::~EngineCore() {
  if (pool_) pool_->complete();  // nobody writes to what is destroyed before it
}

Result<std::unique_ptr<EngineCore>> EngineCore::create(
    std::shared_ptr<const Model> model, std::shared_ptr<const KvCalibration> calibration,
    std::shared_ptr<const Model> draft_model,
    std::shared_ptr<const KvCalibration> draft_calibration, const EngineOptions& wanted,
    TraceSink trace_sink, const Clock& clock) {
  std::unique_ptr<EngineCore> self(new EngineCore);
  self->clock_ = &clock;
  EngineOptions& o = self->options_;
  o = wanted;
  if (o.threads <= 0) o.threads = std::max(1, int(std::thread::hardware_concurrency()));
  const ModelConfig& config = model->config();
  if (o.max_model_len <= 0) o.max_model_len = std::min(config.context_length, kDefaultContext);
  if (o.max_model_len > config.context_length) {
    return Error{ErrorCode::kOutOfRange,
                 fmt::format("max-model-len {} is over the model's context length {}",
                             o.max_model_len, config.context_length)};
  }
  if (o.max_num_seqs < 1 || o.max_num_seqs > 256) {
    return Error{ErrorCode::kOutOfRange,
                 fmt::format("max-num-seqs is {}, wanted 1 to 256", o.max_num_seqs)};
  }
  if (o.spec_draft_n_max < 0 || o.spec_draft_n_max > kMaxDraft ||
      o.spec_draft_n_fixed > kMaxDraft) {
    return Error{ErrorCode::kOutOfRange, fmt::format("spec-draft-n-max is {}, wanted 0 to {}",
                                                     o.spec_draft_n_max, kMaxDraft)};
  }
  o.spec_draft_n_max = std::max(o.spec_draft_n_max, o.spec_draft_n_fixed);
  if (!o.spec_type.any()) o.spec_draft_n_max = 0;
  if (o.spec_type.needs_draft_model() && !draft_model) {
    return Error{
        ErrorCode::kInvalidInput,
        fmt::format("spec-type {} needs a draft model (--spec-draft-model)", o.spec_type.name)};
  }
  // Every decoding sequence must fit with its draft, and prefill must make progress beside them.
  o.max_batch_rows = std::max(o.max_batch_rows, o.max_num_seqs * (1 + o.spec_draft_n_max) + 16);
  if (o.kv_cache_memory == 0)
    o.kv_cache_memory = default_kv_memory(model->kv_geometry(), o.max_model_len, o.max_num_seqs);

  self->model_ = model;
  self->trace_sink_ = std::move(trace_sink);
  self->pool_ = std::make_unique<kernels::ThreadPool>(o.threads);
  KvOptions kv_options;
  kv_options.mode = o.kv_cache_dtype;
  kv_options.sink_tokens = o.kv_sink;
  kv_options.window_tokens = o.kv_window;
  kv_options.memory_bytes = o.kv_cache_memory;
  kv_options.max_sequences = o.max_num_seqs;
  kv_options.max_rows = o.max_batch_rows;
  kv_options.max_model_len = o.max_model_len;
  if (o.prefix_tail_memory == 0) o.prefix_tail_memory = o.kv_cache_memory / 2;
  if (o.prefix_cache) kv_options.tail_bytes = o.prefix_tail_memory;
  const auto add_to_root = [&root = self->page_root_](const Model& m, KvMode mode) {
    root.append(reinterpret_cast<const char*>(m.fingerprint().data()), m.fingerprint().size());
    root += kv_mode_name(mode);
  };
  add_to_root(*model, o.kv_cache_dtype);
  if (draft_model) add_to_root(*draft_model, o.draft_kv_cache_dtype);
  self->page_root_ += fmt::format(" sink {} window {} ", o.kv_sink, o.kv_window);
  auto kv = model->make_memory(kv_options, std::move(calibration));
  if (!kv) return kv.error();
  self->memory_ = std::move(*kv);
  if (const std::int64_t held = self->memory_->capacity_tokens(); held < o.max_model_len) {
    spdlog::warn(
        "max-model-len is {}, but the KV cache of {} MiB holds {} tokens: that is the "
        "context served",
        o.max_model_len, o.kv_cache_memory >> 20, held);
    o.max_model_len = held;
  }

  std::unique_ptr<ModelSpeculator> model_speculator;
  if (draft_model && o.spec_type.has(SpeculatorKind::kModel)) {
    if (draft_model->config().n_vocab != config.n_vocab) {
      return Error{ErrorCode::kInvalidInput,
                   fmt::format("the draft model's vocabulary has {} tokens, the target's {}: they "
                               "must share one tokenizer",
                               draft_model->config().n_vocab, config.n_vocab)};
    }
    ModelSpeculatorOptions draft_options;
    draft_options.kv = kv_options;
    draft_options.kv.mode = o.draft_kv_cache_dtype;
    draft_options.kv.memory_bytes =
        default_kv_memory(draft_model->kv_geometry(), o.max_model_len, o.max_num_seqs);
    if (o.prefix_cache) draft_options.kv.tail_bytes = draft_options.kv.memory_bytes / 2;
    draft_options.max_draft = o.spec_draft_n_max;
    draft_options.draft_vocab =
        (o.spec_draft_vocab + kernels::kPackRows - 1) / kernels::kPackRows * kernels::kPackRows;
    draft_options.rejection = o.spec_sampling == SpecSampling::kRejection;
    auto speculator = ModelSpeculator::create(std::move(draft_model), std::move(draft_calibration),
                                              draft_options, *self->pool_);
    if (!speculator) return speculator.error();
    model_speculator = std::move(*speculator);
  }
  PortfolioOptions portfolio;
  portfolio.kinds = o.spec_type;
  portfolio.model_step_bytes = model->step_bytes();
  portfolio.n_max = o.spec_draft_n_max;
  portfolio.n_fixed = o.spec_draft_n_fixed;
  portfolio.max_sequences = o.max_num_seqs;
  portfolio.max_model_len = o.max_model_len;
  portfolio.clock = &clock;
  self->taps_ = o.head_taps.value_or(head_taps(config.n_layers));
  for (const int tap : self->taps_) {
    if (tap < 0 || tap > config.n_layers) {
      return Error{ErrorCode::kOutOfRange,
                   fmt::format("head taps: layer {} of a model with {}", tap, config.n_layers)};
    }
  }
  if (self->trace_sink_ || o.spec_type.has(SpeculatorKind::kHead)) {
    self->features_ = model->make_feature_rows(
        self->taps_, o.max_batch_rows, o.spec_type.has(SpeculatorKind::kHead) ? o.max_num_seqs : 0);
    portfolio.target = model.get();
    portfolio.features = self->features_.get();
  }
  self->portfolio_ =
      std::make_unique<Portfolio>(portfolio, std::move(model_speculator), *self->pool_);
  self->coin_ = ControlCoin(o.control_fraction, 0x666f7265746f6bull);
  self->learned_.served = initial_weights();
  EngineProbeOptions probe;
  probe.control_fraction = o.control_fraction;
  probe.speculates = o.spec_draft_n_max > 0;
  probe.windows.plain_fraction = probe.speculates ? o.plain_fraction : 0;
  probe.windows.seed = 0x706c61696eull;
  self->probe_ = std::make_unique<EngineProbe>(probe);
  self->served_label_ = self->probe_->version(self->learned_.served->version);

  self->max_logit_rows_ = o.max_num_seqs * (1 + o.spec_draft_n_max);
  self->workspace_ = model->make_workspace(o.max_batch_rows, self->max_logit_rows_);
  self->sampler_ = std::make_unique<Sampler>(config.n_vocab);
  self->logits_ = model->make_logit_rows(self->max_logit_rows_);
  self->reports_.reserve(std::size_t(self->max_logit_rows_));
  self->slot_used_.assign(std::size_t(o.max_num_seqs), false);
  self->limits_ = {o.max_batch_rows, o.spec_draft_n_max};
  self->states_.reserve(std::size_t(o.max_num_seqs));
  self->plan_.decode.reserve(std::size_t(o.max_num_seqs));
  self->plan_.prefill.reserve(std::size_t(o.max_num_seqs));
  self->round_.entries.resize(std::size_t(o.max_num_seqs));
  for (RoundEntry& e : self->round_.entries) {
    e.emitted.reserve(kMaxDraft + 1);
    e.path.reserve(kMaxDraft + 1);
  }
  self->round_.jobs.resize(std::size_t(o.max_num_seqs));
  self->round_.tokens.reserve(std::size_t(o.max_batch_rows));
  self->round_.groups.reserve(std::size_t(o.max_num_seqs));
  self->round_.logit_rows.reserve(std::size_t(self->max_logit_rows_));
  self->started_ = self->version_since_ = self->now();
  return self;
}

DraftContext EngineCore::context_of(const Sequence& sequence) const {
  DraftContext context;
  context.request = sequence.request.id;
  context.slot = sequence.slot;
  context.tokens = sequence.tokens;
  context.sampling = &sequence.request.sampling;
  context.store = sequence.store;
  context.stop_tokens = sequence.request.stop_tokens;
  if (!sequence.chain.empty()) context.chain = &sequence.chain;
  context.n_prompt = sequence.n_prompt;
  context.learned = sequence.learned;
  context.rejection = options_.spec_sampling == SpecSampling::kRejection;
  return context;
}

std::unique_ptr<Sequence> EngineCore::sequence_of(EngineRequest request) const {
  const auto n = std::int64_t(request.prompt.size());
  auto sequence = std::make_unique<Sequence>();
  sequence->n_prompt = n;
  sequence->tokens.reserve(std::size_t(n + request.max_tokens) + 1);
  sequence->tokens = request.prompt;
  sequence->submitted = now();
  if (wants_penalties(request.sampling)) {
    sequence->counts = std::make_unique<TokenCounts>(model_->config().n_vocab);
    for (const TokenId token : request.prompt) sequence->counts->add_prompt(token);
  }
  if (request.trace && trace_sink_) {
    auto trace = std::make_unique<RequestTrace>();
    trace->request = request.id;
    trace->domain = request.domain;
    trace->key_id = request.key_id;
    trace->model_fingerprint = model_->fingerprint();
    const SamplingParams& sampling = request.sampling;
    trace->sampling = {sampling.temperature, sampling.top_k,
                       sampling.top_p,       sampling.min_p,
                       sampling.seed,        sampling.logit_bias,
                       request.stop_tokens,  options_.spec_sampling == SpecSampling::kRejection};
    trace->n_prompt = std::int32_t(n);
    trace->n_taps = kHeadTaps;
    trace->tap_width = std::int32_t(model_->config().hidden);
    if (taps_ != head_taps(model_->config().n_layers))
      trace->tap_layers.assign(taps_.begin(), taps_.end());
    trace->tap_first = std::int32_t(std::max<std::int64_t>(0, n - kTracedPrompt));
    sequence->trace = std::move(trace);
  }
  sequence->chain = chain_of(request);
  sequence->request = std::move(request);
  return sequence;
}

// Requests that opted out of traces share pages with their own kind of the same key alone, whatever
// --share-across-keys says: what others are traced with is never theirs.
PageChain EngineCore::chain_of(const EngineRequest& request) const {
  if (!options_.prefix_cache) return {};
  std::string root = page_root_;
  if (!request.trace)
    root += "untraced " + request.key_id;
  else if (!options_.share_across_keys)
    root += "key " + request.key_id;
  PageChain chain(hash_bytes(root), owner_of(request.key_id),
                  std::int64_t(request.prompt.size()) + request.max_tokens);
  chain.extend(request.prompt);
  return chain;
}

void EngineCore::forget_traffic(const std::string& key_id) {
  portfolio_->forget(key_id, owner_of(key_id));
  memory_->forget(owner_of(key_id));
  for (auto& s : running_) s->keeps_pages &= s->request.key_id != key_id;
  for (auto& s : waiting_) s->keeps_pages &= s->request.key_id != key_id;
}

void EngineCore::set_learned(SpeculatorChoice choice, std::vector<LearnedPointer>& retired) {
  const auto begin = now();
  const auto version_of = [](const LearnedPointer& weights) {
    return weights ? weights->version.value : 0;
  };
  // At start-up the shipped weights are told to serve: that is no swap.
  const bool changes = choice.served->version != learned_.served->version ||
                       version_of(choice.canary) != version_of(learned_.canary);
  if (choice.served->version != learned_.served->version) version_since_ = begin;
  retired.push_back(std::move(learned_.served));
  if (learned_.canary) retired.push_back(std::move(learned_.canary));
  learned_ = std::move(choice);
  portfolio_->prepare(learned_.served.get(), learned_.canary.get());
  served_label_ = probe_->version(learned_.served->version);
  if (learned_.canary) canary_label_ = probe_->version(learned_.canary->version);
  for (auto& s : running_) s->learned = learned_.of(s->request.id).get();
  probe_->add(Count::kSwaps, changes);
}

void EngineCore::round() {
  round_.started = now();
  settle_features();
  admit();
  plan();
  if (round_.n_entries == 0 && !plan_.has_prefill) return;  // prefill gets its entries in verify()
  draft();
  verify();
  accept();
  commit();
  if constexpr (kChecksSequences) {
    for (const auto& s : running_) {
      if (const char* broken = s->broken()) {
        fmt::print(stderr, "engine: request {} breaks: {}\n", s->request.id.value, broken);
        std::abort();
      }
    }
  }
}

void EngineCore::fill(EngineStats& stats) const {
  const SteadyTime now = this->now();
  const auto seconds = [](auto d) { return std::chrono::duration<double>(d).count(); };
  stats = {};
  probe_->fill(stats, now);
  portfolio_->fill(stats);
  stats.uptime_s = seconds(now - started_);
  stats.requests_running = std::int64_t(running_.size());
  stats.requests_waiting = std::int64_t(waiting_.size());
  stats.version = learned_.served->version;
  if (learned_.canary) stats.canary = learned_.canary->version;
  stats.version_age_s = seconds(now - version_since_);
  stats.kv = memory_->stats();
}

}  // namespace foretoken
