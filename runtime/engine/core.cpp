#include "runtime/engine/core.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include <spdlog/spdlog.h>

#include "foretoken/kernels/sampling.h"
#include "foretoken/protocol/failure.h"

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

EngineCore::EngineCore(std::shared_ptr<const Model> model, const EngineOptions& options,
                       TraceSink trace_sink, const Clock& clock)
    : clock_(clock),
      model_(std::move(model)),
      options_(options),
      trace_sink_(std::move(trace_sink)),
      coin_(options.control_fraction, 0x666f7265746f6bull),
      started_(now()) {
  version_since_ = started_;
  learned_.served = initial_weights();
}

Result<std::unique_ptr<EngineCore>> EngineCore::create(
    std::shared_ptr<const Model> model, std::shared_ptr<const KvCalibration> calibration,
    std::shared_ptr<const Model> draft_model,
    std::shared_ptr<const KvCalibration> draft_calibration, const EngineOptions& options,
    TraceSink trace_sink, const Clock& clock) {
  std::unique_ptr<EngineCore> self(
      new EngineCore(std::move(model), options, std::move(trace_sink), clock));
  if (auto s = self->settle_options(draft_model.get()); !s) return s.error();
  self->pool_ = std::make_unique<kernels::ThreadPool>(self->options_.threads);
  if (auto s = self->make_memory(std::move(calibration), draft_model.get()); !s) return s.error();
  auto speculator =
      self->make_model_speculator(std::move(draft_model), std::move(draft_calibration));
  if (!speculator) return speculator.error();
  self->make_portfolio(std::move(*speculator));
  self->make_buffers();
  return self;
}

// Checks them and fills in what was left to defaults.
Status EngineCore::settle_options(const Model* draft_model) {
  EngineOptions& o = options_;
  const ModelConfig& config = model_->config();
  if (o.threads <= 0) o.threads = std::max(1, int(std::thread::hardware_concurrency()));
  if (o.max_model_len <= 0) o.max_model_len = std::min(config.context_length, kDefaultContext);
  const auto out_of_range = [](std::string what) {
    return Error{ErrorCode::kOutOfRange, std::move(what)};
  };
  if (o.max_model_len > config.context_length)
    return out_of_range(fmt::format("max-model-len {} is over the model's context length {}",
                                    o.max_model_len, config.context_length));
  if (o.max_num_seqs < 1 || o.max_num_seqs > 256)
    return out_of_range(fmt::format("max-num-seqs is {}, wanted 1 to 256", o.max_num_seqs));
  if (o.spec_draft_n_max < 0 || o.spec_draft_n_max > kMaxDraft || o.spec_draft_n_fixed > kMaxDraft)
    return out_of_range(
        fmt::format("spec-draft-n-max is {}, wanted 0 to {}", o.spec_draft_n_max, kMaxDraft));
  o.spec_draft_n_max = std::max(o.spec_draft_n_max, o.spec_draft_n_fixed);
  if (!o.spec_type.any()) o.spec_draft_n_max = 0;
  if (o.spec_type.needs_draft_model() && !draft_model) {
    return failure(ErrorCode::kInvalidInput,
                   "spec-type {} needs a draft model (--spec-draft-model)", o.spec_type.name);
  }
  taps_ = o.head_taps.value_or(head_taps(config.n_layers));
  for (const int tap : taps_) {
    if (tap < 0 || tap > config.n_layers)
      return out_of_range(
          fmt::format("head taps: layer {} of a model with {}", tap, config.n_layers));
  }
  // Every decoding sequence must fit with its draft, and prefill must make progress beside them.
  o.max_batch_rows = std::max(o.max_batch_rows, o.max_num_seqs * (1 + o.spec_draft_n_max) + 16);
  if (o.kv_cache_memory == 0)
    o.kv_cache_memory = default_kv_memory(model_->kv_geometry(), o.max_model_len, o.max_num_seqs);
  if (o.prefix_tail_memory == 0) o.prefix_tail_memory = o.kv_cache_memory / 2;
  limits_ = {o.max_batch_rows, o.spec_draft_n_max};
  return Ok{};
}

KvOptions EngineCore::kv_options(KvMode mode, std::size_t bytes, std::size_t tail_bytes) const {
  const EngineOptions& o = options_;
  return {.mode = mode,
          .sink_tokens = o.kv_sink,
          .window_tokens = o.kv_window,
          .memory_bytes = bytes,
          .max_sequences = o.max_num_seqs,
          .max_rows = o.max_batch_rows,
          .max_model_len = o.max_model_len,
          .tail_bytes = o.prefix_cache ? tail_bytes : 0};
}

Status EngineCore::make_memory(std::shared_ptr<const KvCalibration> calibration,
                               const Model* draft_model) {
  EngineOptions& o = options_;
  const auto add_to_root = [&](const Model& m, KvMode mode) {
    page_root_.append(reinterpret_cast<const char*>(m.fingerprint().data()),
                      m.fingerprint().size());
    page_root_ += kv_mode_name(mode);
  };
  add_to_root(*model_, o.kv_cache_dtype);
  if (draft_model) add_to_root(*draft_model, o.draft_kv_cache_dtype);
  page_root_ += fmt::format(" sink {} window {} ", o.kv_sink, o.kv_window);
  auto memory =
      model_->make_memory(kv_options(o.kv_cache_dtype, o.kv_cache_memory, o.prefix_tail_memory),
                          std::move(calibration));
  if (!memory) return memory.error();
  memory_ = std::move(*memory);
  if (const std::int64_t held = memory_->capacity_tokens(); held < o.max_model_len) {
    spdlog::warn(
        "max-model-len is {}, but the KV cache of {} MiB holds {} tokens: that is the "
        "context served",
        o.max_model_len, o.kv_cache_memory >> 20, held);
    o.max_model_len = held;
  }
  return Ok{};
}

// Null: no draft model drafts.
Result<std::unique_ptr<ModelSpeculator>> EngineCore::make_model_speculator(
    std::shared_ptr<const Model> draft_model,
    std::shared_ptr<const KvCalibration> calibration) const {
  const EngineOptions& o = options_;
  if (!draft_model || !o.spec_type.has(SpeculatorKind::kModel))
    return std::unique_ptr<ModelSpeculator>();
  if (draft_model->config().n_vocab != model_->config().n_vocab) {
    return failure(ErrorCode::kInvalidInput,
                   "the draft model's vocabulary has {} tokens, the target's {}: they "
                   "must share one tokenizer",
                   draft_model->config().n_vocab, model_->config().n_vocab);
  }
  const std::size_t bytes =
      default_kv_memory(draft_model->kv_geometry(), o.max_model_len, o.max_num_seqs);
  const ModelSpeculatorOptions options{
      .kv = kv_options(o.draft_kv_cache_dtype, bytes, bytes / 2),
      .draft_vocab =
          (o.spec_draft_vocab + kernels::kPackRows - 1) / kernels::kPackRows * kernels::kPackRows,
      .rejection = o.spec_sampling == SpecSampling::kRejection};
  return ModelSpeculator::create(std::move(draft_model), std::move(calibration), options, *pool_);
}

void EngineCore::make_portfolio(std::unique_ptr<ModelSpeculator> model_speculator) {
  const EngineOptions& o = options_;
  PortfolioOptions portfolio;
  portfolio.max_sequences = o.max_num_seqs;
  portfolio.max_draft = o.spec_draft_n_max;
  portfolio.max_tokens = o.max_model_len;
  portfolio.kinds = o.spec_type;
  portfolio.n_fixed = o.spec_draft_n_fixed;
  portfolio.model_step_bytes = model_->step_bytes();
  portfolio.clock = &clock_;
  const bool head = o.spec_type.has(SpeculatorKind::kHead);
  if (trace_sink_ || head) {
    features_ = model_->make_feature_rows(taps_, o.max_batch_rows, head ? o.max_num_seqs : 0);
    portfolio.target = model_.get();
    portfolio.features = features_.get();
  }
  portfolio_ = std::make_unique<Portfolio>(portfolio, std::move(model_speculator), *pool_);
  EngineProbeOptions probe;
  probe.control_fraction = o.control_fraction;
  probe.speculates = o.spec_draft_n_max > 0;
  probe.windows.plain_fraction = probe.speculates ? o.plain_fraction : 0;
  probe.windows.seed = 0x706c61696eull;
  probe_ = std::make_unique<EngineProbe>(probe);
  served_label_ = probe_->version(learned_.served->version);
}

// A round allocates nothing: what it fills is made here.
void EngineCore::make_buffers() {
  const EngineOptions& o = options_;
  const int logit_rows = o.max_num_seqs * (1 + o.spec_draft_n_max);
  const auto sequences = std::size_t(o.max_num_seqs);
  workspace_ = model_->make_workspace(o.max_batch_rows, logit_rows);
  sampler_ = std::make_unique<Sampler>(model_->config().n_vocab);
  logits_ = model_->make_logit_rows(logit_rows);
  reports_.reserve(std::size_t(logit_rows));
  slot_used_.assign(sequences, false);
  states_.reserve(sequences);
  plan_.decode.reserve(sequences);
  plan_.prefill.reserve(sequences);
  round_.entries.resize(sequences);
  for (RoundEntry& e : round_.entries) {
    e.emitted.reserve(kMaxDraft + 1);
    e.path.reserve(kMaxDraft + 1);
  }
  round_.jobs.resize(sequences);
  round_.tokens.reserve(std::size_t(o.max_batch_rows));
  round_.groups.reserve(sequences);
  round_.logit_rows.reserve(std::size_t(logit_rows));
}

DraftContext EngineCore::context_of(const Sequence& s) const {
  return {.request = s.request.id,
          .slot = s.slot,
          .tokens = s.tokens,
          .sampling = &s.request.sampling,
          .store = s.store,
          .rejection = options_.spec_sampling == SpecSampling::kRejection,
          .learned = s.learned,
          .stop_tokens = s.request.stop_tokens,
          .chain = s.chain.empty() ? nullptr : &s.chain,
          .n_prompt = s.n_prompt};
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
  for_each_sequence([&](Sequence& s) { s.keeps_pages &= s.request.key_id != key_id; });
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
  probe_->add(&EngineStats::swaps, changes);
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
  probe_->fill(stats, now);
  portfolio_->fill(stats);
  stats.uptime_s = seconds_of(now - started_);
  stats.requests_running = std::int64_t(running_.size());
  stats.requests_waiting = std::int64_t(waiting_.size());
  stats.version = learned_.served->version;
  if (learned_.canary) stats.canary = learned_.canary->version;
  stats.version_age_s = seconds_of(now - version_since_);
  stats.kv = memory_->stats();
}

}  // namespace foretoken
