#include "runtime/evaluate/benchmark.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <memory>
#include <random>
#include <thread>

#include "foretoken/kernels/isa.h"
#include "foretoken/kernels/peak.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/model/model.h"
#include "runtime/model/weights.h"
#include "runtime/speculate/draft_vocabulary.h"
#include "runtime/speculate/head/initial_head.h"

namespace foretoken {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

// Larger than any cache that a socket shares, so that a pass comes from memory.
constexpr std::size_t kBandwidthBytes = std::size_t{1} << 30;
// 12 instructions an iteration, at two a cycle: a few milliseconds a pass.
constexpr std::int64_t kSpinIterations = 1 << 20;
// Where plain decoding and rounds of several rows are timed: a short chat's context.
constexpr std::int64_t kShortContext = 128;
constexpr int kWarmup = 2;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

struct Times {
  std::vector<double> ms;
  double median() const { return median_of(ms); }
  double best() const { return *std::min_element(ms.begin(), ms.end()); }
  json::object json() const {
    return {{"median", median()},
            {"min", best()},
            {"max", *std::max_element(ms.begin(), ms.end())},
            {"repeats", ms.size()}};
  }
};

template <class F>
double timed(F work) {
  const auto start = Clock::now();
  work();
  return ms_since(start);
}
template <class F>
Times repeat(int n, F work) {
  Times times;
  for (int i = 0; i < n; ++i) times.ms.push_back(timed(work));
  return times;
}
// What `works` say they took, in turn, a few to warm up not counted.
template <class... F>
std::array<Times, sizeof...(F)> in_turn(int n, F... works) {
  std::array<Times, sizeof...(F)> times;
  for (int i = -kWarmup; i < n; ++i) {
    std::size_t at = 0;
    for (const double ms : {works()...})
      if (i >= 0) times[at++].ms.push_back(ms);
  }
  return times;
}

Error no_room() {
  return {ErrorCode::kInternal, "bench: the KV pool is too small for what is measured"};
}

// How fast all threads together read memory, one pass at a time.
class MemoryReader {
 public:
  explicit MemoryReader(kernels::ThreadPool& pool) : pool_(pool) {
    if (buffer_.data() == nullptr) return;
    // Touched by the threads that will read it.
    pool.ranges(std::int64_t(kBandwidthBytes), 4096,
                [&](std::int64_t begin, std::int64_t end, int) {
                  std::fill(buffer_.data() + begin, buffer_.data() + end, std::byte{1});
                });
  }
  double pass() {  // bytes/s; 0: there is no memory for it
    if (buffer_.data() == nullptr) return 0;
    const auto start = Clock::now();
    sum_ = sum_ + kernels::stream_sum(buffer_.data(), kBandwidthBytes, pool_);
    return double(kBandwidthBytes) / ms_since(start) * 1000;
  }

 private:
  kernels::ThreadPool& pool_;
  // On huge pages where the system grants them, as weights are: a core reads faster from them.
  WeightBuffer buffer_{kBandwidthBytes};
  volatile std::uint64_t sum_ = 0;
};

double int8_macs_per_s(kernels::ThreadPool& pool, int repeats) {
  std::int64_t done = 0;
  volatile std::int32_t sink = 0;
  const Times times = repeat(repeats, [&] {
    std::int32_t value = 0;
    done = kernels::int8_multiply_adds(kSpinIterations, pool, &value);
    sink = sink + value;
  });
  return double(done) / times.best() * 1000;
}

// One model with one sequence at some depth. A round that is not committed is repeated at the same
// positions, as a verify round whose draft was rejected. The first failure is kept: nothing runs
// after it.
class Bench {
 public:
  Bench(std::shared_ptr<const Model> model, KvMode mode, std::int64_t max_tokens, int max_rows,
        kernels::ThreadPool& pool)
      : model_(std::move(model)),
        workspace_(model_->make_workspace(max_rows, max_rows)),
        logits_(model_->make_logit_rows(1)),
        pool_(pool),
        max_rows_(max_rows) {
    // The recipe without calibration costs what a calibrated one costs.
    auto cache = model_->make_memory_of_one(
        {.mode = mode, .max_rows = max_rows, .max_model_len = max_tokens},
        mode == KvMode::kInt2 ? KvCalibration::data_free(model_->kv_geometry()) : nullptr);
    if (cache)
      kv_ = std::move(*cache), sequence_ = kv_->open().value();
    else
      status_ = cache.error();
  }
  const Status& status() const { return status_; }

  // Rows after the committed length; logits of all of them (verify), or of the last (prefill).
  void forward(std::int64_t n_rows, bool all_logits, bool commit) {
    if (status_ && !kv_->reserve(sequence_, length_ + n_rows)) status_ = no_room();
    if (!status_) return;
    // Which tokens makes no difference to the time.
    tokens_.clear();
    for (std::int64_t i = 0; i < n_rows; ++i)
      tokens_.push_back(TokenId((length_ + i) * 7919 % model_->config().n_vocab));
    logit_rows_.clear();
    for (int i = all_logits ? 0 : int(n_rows) - 1; i < n_rows; ++i) logit_rows_.push_back(i);
    model_->forward_one({.tokens = tokens_,
                         .logit_rows = logit_rows_,
                         .logits = output_ ? cut_logits_.get() : logits_.get(),
                         .output = output_},
                        sequence_, length_, *kv_, *workspace_, pool_);
    if (commit) kv_->commit(sequence_, length_ += n_rows);
  }
  void fill_to(std::int64_t length) {
    while (status_ && length_ < length)
      forward(std::min<std::int64_t>(max_rows_, length - length_), false, true);
  }
  void restart() {
    if (!status_) return;
    kv_->close(sequence_);
    sequence_ = kv_->open().value();
    length_ = 0;
  }
  // Rows of the output matrix to use, or null: all.
  void use_output(const kernels::PackedMatrix* output) {
    output_ = output;
    if (output && !cut_logits_) cut_logits_ = model_->make_logit_rows(1, output);
  }
  KvStats kv_stats() const { return kv_->stats(); }

 private:
  std::shared_ptr<const Model> model_;
  std::unique_ptr<ForwardWorkspace> workspace_;
  std::unique_ptr<LogitRows> logits_, cut_logits_;  // of all rows of the output matrix, of output_
  kernels::ThreadPool& pool_;
  int max_rows_;
  Status status_ = Ok{};
  std::unique_ptr<SequenceMemory> kv_;
  KvSequence sequence_ = 0;
  const kernels::PackedMatrix* output_ = nullptr;
  std::int64_t length_ = 0;
  std::vector<TokenId> tokens_;
  std::vector<int> logit_rows_;
};

double memory_bytes(std::string_view field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(field)) return std::stod(line.substr(field.size())) * 1024;
  return 0;
}

// Attention alone, over the cache of one sequence filled with random K and V, without a model: as
// many layers as outgrow the caches that a core shares, read in turn.
class AttentionBench {
 public:
  static Result<std::unique_ptr<AttentionBench>> open(const KvGeometry& of_model, KvMode mode,
                                                      std::int64_t depth,
                                                      kernels::ThreadPool& pool) {
    constexpr std::int64_t kRoundTripBytes = std::int64_t{256} << 20;  // of 16-bit K and V
    KvGeometry g = of_model;
    const std::int64_t layer_bytes = 4 * depth * g.n_kv_heads * g.head_dim;
    g.n_layers = int(std::clamp<std::int64_t>(kRoundTripBytes / layer_bytes, 1, of_model.n_layers));
    KvOptions kv;
    kv.mode = mode;
    kv.max_sequences = 1;
    kv.max_rows = kPage;
    kv.max_model_len = depth + kPage;
    kv.memory_bytes = std::size_t(layer_bytes * g.n_layers) * 2 + (std::size_t{64} << 20);
    auto cache =
        KvCache::create(g, kv, mode == KvMode::kInt2 ? KvCalibration::data_free(g) : nullptr);
    if (!cache) return cache.error();
    std::unique_ptr<AttentionBench> self(new AttentionBench(g, std::move(*cache), pool));
    if (!self->fill(depth)) return no_room();
    return self;
  }

  // ms a layer, all layers in turn, n_rows rows after the last committed position.
  double time_rows(int n_rows) {
    const auto start = Clock::now();
    for (int layer = 0; layer < geometry_.n_layers; ++layer) attend(layer, length_, n_rows);
    return ms_since(start) / geometry_.n_layers;
  }

 private:
  static constexpr int kPage = 64;

  AttentionBench(const KvGeometry& g, std::unique_ptr<KvCache> kv, kernels::ThreadPool& pool)
      : geometry_(g),
        kv_(std::move(kv)),
        pool_(pool),
        sequence_(kv_->open().value()),
        kv_width_(std::int64_t{g.n_kv_heads} * g.head_dim),
        q_width_(std::int64_t{g.n_heads} * g.head_dim),
        k_(std::size_t(kPage * kv_width_)),
        q_(std::size_t(kPage * q_width_)),
        out_(q_.size()) {
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    for (float& x : k_) x = normal(random);
    for (float& x : q_) x = normal(random);
  }

  bool fill(std::int64_t depth) {
    for (; length_ < depth; length_ += kPage) {
      if (!kv_->reserve(sequence_, length_ + kPage)) return false;
      store(length_);
      // One row is enough to have the pages sealed that it reads as codes.
      for (int layer = 0; layer < geometry_.n_layers; ++layer)
        attend(layer, length_ + kPage - 1, 1);
      kv_->commit(sequence_, length_ + kPage);
    }
    if (!kv_->reserve(sequence_, length_ + kPage)) return false;
    store(length_);
    return true;
  }
  void store(std::int64_t position) {
    const KvRows rows[1] = {{sequence_, position, kPage, 0}};
    for (int layer = 0; layer < geometry_.n_layers; ++layer)
      kv_->store(layer, rows, k_.data(), kv_width_, k_.data(), kv_width_);
  }
  void attend(int layer, std::int64_t position, int n_rows) {
    const KvRows rows[1] = {{sequence_, position, n_rows, 0}};
    kv_->attend(layer, rows, q_.data(), q_width_, out_.data(), q_width_, 0.1f, pool_);
  }

  KvGeometry geometry_;
  std::unique_ptr<KvCache> kv_;
  kernels::ThreadPool& pool_;
  KvSequence sequence_;
  std::int64_t kv_width_, q_width_, length_ = 0;
  std::vector<float> k_, q_, out_;
};

json::object describe(const Model& model) {
  const ModelConfig& c = model.config();
  return {{"name", c.name},
          {"architecture", c.architecture},
          {"layers", c.n_layers},
          {"hidden", c.hidden},
          {"vocabulary", c.n_vocab},
          {"context_length", c.context_length},
          {"file_bytes", model.file().file_bytes()},
          {"weight_bytes", model.weight_bytes()},
          {"step_bytes", model.step_bytes()},
          {"step_macs", model.step_macs()}};
}

class Benchmark {
 public:
  Benchmark(const BenchmarkOptions& options, int threads)
      : options_(options),
        pool_(threads),
        chunk_(int(std::max<std::int64_t>(options.chunk, options.max_rows))) {}

  Result<json::object> run() {
    json::object out{{"schema", "foretoken.bench/1"}};
    say("loading");
    if (Status s = load(options_.model, model_, out["load"]); !s) return s.error();
    if (Status s = measure_prefill(out["prefill"]); !s) return s.error();
    if (Status s = measure_one_row(); !s) return s.error();
    if (options_.head_inner > 0)
      if (Status s = measure_head(out["head"]); !s) return s.error();
    const std::int64_t depth = std::min(options_.depth, model_->config().context_length - 64);
    if (depth > 0) {
      json::object depths;
      for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2})
        if (Status s = measure_depth(mode, depth, depths[kv_mode_name(mode)]); !s) return s.error();
      out["depth"] = std::move(depths);
    }
    if (options_.attention_depth > 0)
      if (Status s = measure_attention(out["attention"]); !s) return s.error();
    if (!options_.draft_model.empty())
      if (Status s = measure_draft(out["draft"]); !s) return s.error();
    out["memory"] = json::object{
        {"peak_bytes", memory_bytes("VmHWM:")},
        {"anonymous_bytes", anonymous_bytes_},
        {"weight_and_kv_bytes", weight_and_kv_bytes_},
        {"times_weights_and_kv", anonymous_bytes_ / weight_and_kv_bytes_},
        {"definition",
         "peak: VmHWM before the bandwidth buffer, pages of the mapped file included. Anonymous: "
         "after a prompt, after rounds or after decoding at depth, whichever is most beside the "
         "packed weights and the KV pages in use then"}};
    if (Status s = measure_bounds(out); !s) return s.error();
    out["model"] = describe(*model_);
    return out;
  }

 private:
  void say(const std::string& what) const {
    if (options_.progress) options_.progress(what);
  }

  Status load(const std::string& path, std::shared_ptr<const Model>& into, json::value& out) {
    ModelLoadOptions load;
    load.threads = pool_.size();
    const auto start = Clock::now();
    auto model = Model::load(path, load);
    if (!model) return model.error();
    into = std::move(*model);
    const double loaded_s = ms_since(start) / 1000;
    Bench bench(into, KvMode::kInt2, kShortContext, 1, pool_);
    bench.forward(1, true, false);
    if (!bench.status()) return bench.status();
    out = json::object{{"seconds", loaded_s}, {"first_token_seconds", ms_since(start) / 1000}};
    return Ok{};
  }

  Status measure_prefill(json::value& out) {
    say(fmt::format("prefill of {} tokens", options_.prefill_tokens));
    Bench bench(model_, KvMode::kInt2, options_.prefill_tokens + 64, chunk_, pool_);
    bench.fill_to(std::min(kShortContext, options_.prefill_tokens));
    const Times times = repeat(std::max(3, options_.repeats / 2), [&] {
      bench.restart();
      bench.fill_to(options_.prefill_tokens);
    });
    if (!bench.status()) return bench.status();
    sample_memory(bench);
    out = json::object{{"tokens", options_.prefill_tokens},
                       {"chunk", chunk_},
                       {"ms", times.json()},
                       {"tokens_per_s", double(options_.prefill_tokens) / times.median() * 1000}};
    return Ok{};
  }

  // What one row takes, against which head, draft and depth are held; and what rounds allocate.
  Status measure_one_row() {
    say("rounds");
    Bench bench(model_, KvMode::kInt2, kShortContext + 64, chunk_, pool_);
    bench.fill_to(kShortContext);
    bench.forward(options_.max_rows, true, false);
    one_row_ = repeat(options_.repeats * 3, [&] { bench.forward(1, true, false); });
    if (!bench.status()) return bench.status();
    sample_memory(bench);
    return Ok{};
  }

  // As serving runs it: after a pass of the target, which leaves little of the head in the caches,
  // three draft positions of all sequences together.
  Status measure_head(json::value& out) {
    say("the recurrent head's steps");
    constexpr int kSteps = 3;
    const std::int64_t hidden = model_->config().hidden;
    const std::int64_t n_vocab = std::min(options_.head_vocab, model_->config().n_vocab) /
                                 kernels::kPackRows * kernels::kPackRows;
    std::vector<TokenId> vocab(static_cast<std::size_t>(n_vocab));
    // Evenly over the vocabulary: rows are gathered, and noise is drawn, as for any real one.
    for (std::int64_t i = 0; i < n_vocab; ++i)
      vocab[std::size_t(i)] = TokenId(i * model_->config().n_vocab / n_vocab);
    auto vocabulary = VocabularyRows::of(model_);
    if (!vocabulary) return vocabulary.error();
    const auto packing = Clock::now();
    auto head =
        RecurrentHead::create(initial_head(hidden, options_.head_inner, vocab, 1), *vocabulary);
    if (!head) return head.error();
    const double prepare_ms = ms_since(packing);
    Bench bench(model_, KvMode::kInt2, kShortContext + 64, chunk_, pool_);
    bench.fill_to(kShortContext);
    json::array by_rows;
    for (const int rows : {1, 2, 4}) {  // sequences drafting at once
      const auto made = (*head)->make_workspace(rows);
      HostHeadWorkspace& workspace = *made;
      std::vector<float> features(std::size_t(rows * kHeadTaps * hidden));
      for (std::size_t i = 0; i < features.size(); ++i)
        features[i] = float(int(i * 7919 % 201) - 100);
      Times begin, step, greedy, sampled;
      const auto choose = [&](float temperature, int s) {
        SamplingParams sampling;
        sampling.temperature = temperature;
        for (int row = 0; row < rows; ++row) workspace.choose(row, {}, sampling, 100 + s, true);
      };
      std::vector<TokenId> tokens(static_cast<std::size_t>(rows));
      for (int i = -kWarmup; i < options_.repeats * 3; ++i) {
        bench.forward(1, true, false);
        double step_ms = 0, greedy_ms = 0, sampled_ms = 0;
        const double begin_ms =
            timed([&] { (*head)->begin(features.data(), rows, workspace, pool_); });
        for (int s = 0; s < kSteps; ++s) {
          for (auto& token : tokens) token = vocab[std::size_t((i + 7) * 31 + s)];
          step_ms += timed([&] { workspace.step(tokens, pool_); }) / kSteps;
          greedy_ms += timed([&] { choose(0, s); }) / kSteps;
          sampled_ms += timed([&] { choose(0.8f, s); }) / kSteps;
        }
        if (i < 0) continue;
        begin.ms.push_back(begin_ms);
        step.ms.push_back(step_ms);
        greedy.ms.push_back(greedy_ms);
        sampled.ms.push_back(sampled_ms);
      }
      by_rows.push_back(json::object{
          {"rows", rows},
          {"begin", begin.json()},
          {"step", step.json()},
          {"choose_greedy", greedy.json()},
          {"choose_sampled", sampled.json()},
          {"times_target_row", (step.median() + greedy.median()) / one_row_.median()}});
    }
    if (!bench.status()) return bench.status();
    out = json::object{{"inner", options_.head_inner},
                       {"vocabulary", n_vocab},
                       {"step_bytes", (*head)->step_bytes()},
                       {"prepare_ms", prepare_ms},
                       {"steps", std::move(by_rows)}};
    return Ok{};
  }

  // Rounds of every size in turn with a pass over memory, and each against what that pass allows:
  // on a machine that others share, what memory gives changes from second to second.
  Status measure_bounds(json::object& out) {
    say("rounds against reading and int8 arithmetic, in turn");
    const double macs_per_s = int8_macs_per_s(pool_, options_.repeats);
    MemoryReader memory(pool_);
    Bench bench(model_, KvMode::kInt2, kShortContext + 64, chunk_, pool_);
    bench.fill_to(kShortContext);
    const auto n = std::size_t(options_.max_rows);
    std::vector<Times> times(n);
    std::vector<std::vector<double>> bounds(n), ratios(n);  // ms; time / bound
    std::vector<double> bandwidth;
    for (int i = -kWarmup; i < options_.repeats * 3; ++i) {
      const double read = memory.pass();
      if (i >= 0) bandwidth.push_back(read);
      for (std::size_t r = 0; r < n; ++r) {
        const int rows = int(r) + 1;
        const double ms = timed([&] { bench.forward(rows, true, false); });
        const double reading = read > 0 ? double(model_->step_bytes()) / read : 0;
        const double arithmetic = rows * double(model_->step_macs()) / macs_per_s;
        const double bound = std::max(reading, arithmetic) * 1000;
        if (i < 0) continue;
        times[r].ms.push_back(ms);
        bounds[r].push_back(bound);
        ratios[r].push_back(ms / bound);
      }
    }
    if (!bench.status()) return bench.status();
    json::array rows_json;
    for (std::size_t r = 0; r < n; ++r) {
      rows_json.push_back(json::object{{"rows", r + 1},
                                       {"ms", times[r].json()},
                                       {"times_one_row", times[r].median() / times[0].median()},
                                       {"bound_ms", median_of(bounds[r])},
                                       {"times_bound", median_of(ratios[r])},
                                       {"share_of_bound", 1 / median_of(ratios[r])}});
    }
    out["machine"] = json::object{{"isa", kernels::isa_name(kernels::active_isa())},
                                  {"threads", pool_.size()},
                                  {"read_gb_per_s", median_of(bandwidth) / 1e9},
                                  {"int8_gmac_per_s", macs_per_s / 1e9}};
    out["rows"] = std::move(rows_json);
    out["decode"] = json::object{
        {"context", kShortContext},
        {"ms", times[0].json()},
        {"tokens_per_s", 1000 / times[0].median()},
        {"bound_tokens_per_s", 1000 / median_of(bounds[0])},
        {"share_of_bound", 1 / median_of(ratios[0])},
        {"definition",
         "bound: the longer of step_bytes / read bandwidth and step_macs / int8 peak; the "
         "bandwidth is that of a pass over memory just before, ratios are medians over the pairs"}};
    return Ok{};
  }

  Status measure_depth(KvMode mode, std::int64_t depth, json::value& out) {
    say(fmt::format("decode at depth {}, KV in {}", depth, kv_mode_name(mode)));
    Bench bench(model_, mode, depth + 64, chunk_, pool_);
    const double fill_ms = timed([&] { bench.fill_to(depth); });
    for (int i = 0; i < kWarmup; ++i) bench.forward(1, true, false);
    const Times times = repeat(options_.repeats, [&] { bench.forward(1, true, false); });
    if (!bench.status()) return bench.status();
    sample_memory(bench);
    out = json::object{{"tokens", depth},
                       {"ms", times.json()},
                       {"tokens_per_s", 1000 / times.median()},
                       {"times_short_context", times.median() / one_row_.median()},
                       {"kv_used_bytes", bench.kv_stats().used_bytes},
                       {"prefill_tokens_per_s", double(depth) / fill_ms * 1000}};
    return Ok{};
  }

  // INT2 against the same kernel's 16-bit pages, and what more rows cost when verifying.
  Status measure_attention(json::value& out) {
    const std::int64_t depth = options_.attention_depth, verify_depth = depth / 2;
    const KvGeometry g = model_->kv_geometry();
    say(fmt::format("attention alone at depth {}", depth));
    auto hot = AttentionBench::open(g, KvMode::kBf16, depth, pool_);
    if (!hot) return hot.error();
    auto sealed = AttentionBench::open(g, KvMode::kInt2, depth, pool_);
    if (!sealed) return sealed.error();
    const auto [bf16, int2] = in_turn(
        options_.repeats, [&] { return (*hot)->time_rows(1); },
        [&] { return (*sealed)->time_rows(1); });
    hot->reset(), sealed->reset();
    auto verify = AttentionBench::open(g, KvMode::kInt2, verify_depth, pool_);
    if (!verify) return verify.error();
    const auto [one_row, four_rows] = in_turn(
        options_.repeats, [&] { return (*verify)->time_rows(1); },
        [&] { return (*verify)->time_rows(4); });
    out =
        json::object{{"tokens", depth},
                     {"bf16_ms", bf16.json()},
                     {"int2_ms", int2.json()},
                     {"int2_times_faster", bf16.median() / int2.median()},
                     {"verify_tokens", verify_depth},
                     {"one_row_ms", one_row.json()},
                     {"four_rows_ms", four_rows.json()},
                     {"four_rows_times_one", four_rows.median() / one_row.median()},
                     {"definition", "one layer, one sequence; pages from memory, not from caches"}};
    return Ok{};
  }

  Status measure_draft(json::value& out) {
    say("the draft model's steps");
    std::shared_ptr<const Model> draft;
    json::value loading;
    if (Status s = load(options_.draft_model, draft, loading); !s) return s.error();
    Bench bench(draft, KvMode::kInt2, kShortContext + 64, chunk_, pool_);
    bench.fill_to(kShortContext);
    std::unique_ptr<DraftVocabulary> vocabulary;
    const std::int64_t n_tokens = options_.draft_vocab / kernels::kPackRows * kernels::kPackRows;
    if (n_tokens >= 2 * kernels::kPackRows && n_tokens < draft->config().n_vocab / 2) {
      auto created = DraftVocabulary::create(draft, n_tokens);
      if (!created) return created.error();
      vocabulary = std::move(*created);
    }
    json::array steps;
    for (const int rows : {1, 2, 4}) {  // rows: sequences drafting at once
      const auto step_with = [&](const kernels::PackedMatrix* output) {
        bench.use_output(output);
        return timed([&] { bench.forward(rows, true, false); });
      };
      const auto [whole, cut] = in_turn(
          options_.repeats, [&] { return step_with(nullptr); },
          [&] { return step_with(vocabulary ? &vocabulary->output() : nullptr); });
      steps.push_back(
          json::object{{"rows", rows},
                       {"ms", cut.json()},
                       {"whole_vocabulary_ms", whole.json()},
                       {"times_target_row", cut.median() / one_row_.median()},
                       {"whole_vocabulary_times_target_row", whole.median() / one_row_.median()}});
    }
    if (!bench.status()) return bench.status();
    out = json::object{{"model", describe(*draft)},
                       {"vocabulary", vocabulary ? n_tokens : draft->config().n_vocab},
                       {"load", std::move(loading)},
                       {"steps", std::move(steps)}};
    return Ok{};
  }

  void sample_memory(const Bench& bench) {
    const double now = memory_bytes("RssAnon:") + memory_bytes("RssShmem:");
    const auto wanted = double(model_->weight_bytes() + bench.kv_stats().used_bytes);
    if (now / wanted < anonymous_bytes_ / weight_and_kv_bytes_) return;
    anonymous_bytes_ = now;
    weight_and_kv_bytes_ = wanted;
  }

  const BenchmarkOptions& options_;
  kernels::ThreadPool pool_;
  int chunk_;
  double anonymous_bytes_ = 0, weight_and_kv_bytes_ = 1;
  std::shared_ptr<const Model> model_;
  Times one_row_;
};

}  // namespace

Result<json::object> run_benchmark(const BenchmarkOptions& options) {
  const int threads =
      options.threads > 0 ? options.threads : std::max(1, int(std::thread::hardware_concurrency()));
  return Benchmark(options, threads).run();
}

}  // namespace foretoken
