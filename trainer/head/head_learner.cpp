#include "trainer/head/head_learner.h"

#include <cmath>

#include "runtime/speculate/head/head_bundle.h"
#include "trainer/examples/draft_vocabulary.h"
#include "trainer/examples/example_cache.h"
#include "trainer/head/adam.h"
#include "trainer/head/head_batch.h"
#include "trainer/learner/head_log.h"

namespace foretoken::trainer {
namespace {

// A head is worth starting once a step can be made and the traffic's words have been seen: fewer
// tokens than this say little about which 4096 matter.
constexpr std::int64_t kFirstVocabularyTokens = 512;
// A new vocabulary costs a gathering of rows (milliseconds), and a new candidate begins its gate
// again: worth it for half a percent of the drafts.
constexpr double kVocabularyGain = 0.005;
// What is served has the rows that pay: a row costs each step of the head its bytes beside the
// target's, and is right about one time in seven that its token comes, which is seldom.
constexpr double kSeldomRight = 1.0 / 7;
// Adam moves every weight by about the rate, and what a row of them adds up to goes with its
// length: 6e-4 at 576 (SmolLM2), 2.25e-4 at 1536 (trainer/README.md).
constexpr double kRateTimesWidth = 6e-4 * 576;

// What is left to the model, by its width.
HeadOptions sized(HeadOptions options, const VocabularyRows& model) {
  const bool small = model.hidden() < 768;
  if (options.inner == 0) options.inner = small ? 512 : 1536;
  if (options.vocabulary == 0) options.vocabulary = small ? 4096 : 8192;
  options.vocabulary = std::min(options.vocabulary, model.n_vocab()) / 16 * 16;
  if (options.learning_rate == 0) options.learning_rate = kRateTimesWidth / double(model.hidden());
  return options;
}

}  // namespace

struct HeadLearner::Impl {
  Impl(const HeadOptions& options_in, std::shared_ptr<const VocabularyRows> model_in,
       const TraceSource& source_in)
      : options(sized(options_in, *model_in)),
        model(std::move(model_in)),
        source(source_in),
        schedule(options, source_in),
        cache(options.cache_bytes, model->hidden(), model->n_vocab(), options.teacher_temperature,
              source),
        counts(model->n_vocab()),
        product_type(!options.bf16.has_value() ? fast_product_type()
                     : *options.bf16           ? torch::kBFloat16
                                               : torch::kFloat32) {
    if (product_type != torch::kFloat32) options.chains_per_slice = options.chains_per_fast_slice;
    for (int s = 0; s < options.unroll; ++s)
      step_weights.push_back(std::pow(options.step_weight, s));
  }

  void create(HeadParameters initial) {
    head = std::move(initial);
    for (torch::Tensor& p : head.all()) p.set_requires_grad(true);
    average = head.clone();
    round();
    adam = std::make_unique<Adam>(head.weights());
    table_adam = std::make_unique<Adam>(head.table());
    gain_adam = std::make_unique<Adam>(std::vector<torch::Tensor>{head.gain});
  }

  // What steps are computed with, after every change of the weights.
  void round() { working = product_type == torch::kFloat32 ? head : head.rounded_copy(); }

  // Between steps only: what a step was begun with stays until it is done.
  void recount() {
    const std::int64_t tokens = schedule.tokens();
    if (tokens < next_recount) return;
    next_recount = std::max(tokens + tokens / 2, kFirstVocabularyTokens);
    auto best = counts.most_frequent(std::size_t(options.vocabulary));
    const double gain =
        vocabulary ? counts.coverage(best) - counts.coverage(vocabulary->tokens) : 1;
    if (gain < kVocabularyGain) return;
    if (vocabulary) {
      log_vocabulary_counted(tokens, gain);
    }
    vocabulary = std::make_unique<HeadVocabulary>(std::move(best), *model, product_type);
    if (!head.fc.defined()) {
      create(HeadParameters::initial(model->hidden(), options.inner, options.vocabulary,
                                     options.seed));
      log_head_begun(model->hidden(), options.inner, options.vocabulary, tokens);
    }
  }

  void observe(std::uint64_t sequence, const RequestTrace& trace) {
    const auto example = cache.put(sequence, trace);
    if (!example) return schedule.observe(sequence, std::nullopt, 0);
    if (!layers) layers = example->tap_layers;
    counts.observe(trace);
    schedule.observe(sequence, starts_of(sequence, *example), example->n, example->domain);
  }

  bool begin_step(std::size_t fresh_waiting) {
    recount();
    if (!vocabulary) return false;
    step_loss = step_weight_sum = 0;
    return schedule.begin(fresh_waiting, [this](std::uint64_t sequence) -> std::optional<Piece> {
      const auto example = cache.get(sequence);
      if (!example || example->tap_layers != layers) return std::nullopt;
      return starts_of(sequence, *example);
    });
  }

  bool work(std::size_t fresh_waiting) {
    if (!schedule.under_way() && !begin_step(fresh_waiting)) return false;
    slice();
    if (!schedule.under_way()) end_step();
    return true;
  }

  // Gradients of the next chains_per_slice chains of the step's.
  void slice() {
    std::vector<ChainRange> ranges;
    std::int64_t room = options.chains_per_slice;
    while (room > 0) {
      const std::optional<Piece> piece = schedule.take(room);
      if (!piece) break;
      if (auto example = cache.get(piece->sequence)) {
        ranges.push_back(
            {std::move(example), std::int32_t(piece->start), std::int32_t(piece->count)});
      }
      room -= piece->count;
    }
    if (ranges.empty()) return;
    const HeadBatch made = make_head_batch(ranges, options.unroll, *model);
    const auto r = run_head(working, made.x, made.embedded);
    const HeadLoss loss = head_loss(*options.objective, working, *vocabulary, made, r, step_weights,
                                    options.refused_weight);
    for (std::size_t i = 0; i < std::size_t(made.n); ++i) {
      if (const HeadExample* example = made.rows[i].example)
        schedule.watch(example->domain, loss.predicted[i], loss.accepted[i]);
    }
    r.backward(loss.r_gradient);
    if (product_type != torch::kFloat32) gather_gradients();
    step_loss += loss.sum;
    step_weight_sum += loss.weight;
    chains += made.n;
  }

  // bf16 has 8 bits: slices are summed in fp32.
  void gather_gradients() {
    torch::NoGradGuard no_grad;
    const auto add = [](const torch::Tensor& to, torch::Tensor& from) {
      if (!to.grad().defined()) to.mutable_grad() = torch::zeros_like(to);
      to.mutable_grad().add_(from.grad());
      from.mutable_grad().reset();
    };
    add(head.fc, working.fc);
    add(head.inner, working.inner);
    add(head.down, working.down);
  }

  void end_step() {
    if (step_weight_sum <= 0) return;
    schedule.end();
    std::vector<torch::Tensor> gradients, table_gradients;
    for (const torch::Tensor& p : head.weights()) gradients.push_back(p.grad());
    for (const torch::Tensor& p : head.table()) table_gradients.push_back(p.grad());
    // The mean over positions, weights included, then the clip.
    const double scale = 1 / step_weight_sum;
    if (!scale_and_clip(gradients, scale, options.clip)) {
      log_step_left_out();
      clear_gradients();
      return;
    }
    {
      torch::NoGradGuard no_grad;
      at::_foreach_mul_(table_gradients, scale);
      head.gain.mutable_grad().mul_(scale);
    }
    ++step;
    const double warmup = std::min(1.0, double(step) / options.warmup_steps);
    adam->step(schedule.learning_rate() * warmup);
    gain_adam->step(options.gain_learning_rate * warmup * std::abs(head.gain.item<double>()));
    if (schedule.fresh()) table_adam->step(options.table_learning_rate * warmup);
    clear_gradients();
    round();
    std::vector<torch::Tensor> now;
    for (const torch::Tensor& p : head.all()) now.push_back(p.detach());
    move_average(average.all(), now, options.average_decay, step);
    loss.add(step_loss / step_weight_sum);
  }

  void clear_gradients() {
    for (const torch::Tensor& p : head.all()) {
      if (p.grad().defined()) p.mutable_grad().zero_();
    }
  }

  HeadOptions options;
  std::shared_ptr<const VocabularyRows> model;
  const TraceSource& source;
  StepSchedule schedule;
  std::vector<double> step_weights;
  mutable ExampleCache cache;
  VocabularyCounts counts;
  // Of the hidden states that it learns from; nullopt before the first request.
  std::optional<std::vector<std::int32_t>> layers;
  std::unique_ptr<HeadVocabulary> vocabulary;  // null before the first step
  const torch::ScalarType product_type;
  HeadParameters head, average, working;
  std::unique_ptr<Adam> adam, table_adam, gain_adam;

  std::int64_t chains = 0, next_recount = kFirstVocabularyTokens;
  double step_loss = 0, step_weight_sum = 0;  // of the step under way
  std::int64_t step = 0;
  SmoothedLoss loss;
};

HeadLearner::HeadLearner(const HeadOptions& options, std::shared_ptr<const VocabularyRows> model,
                         const TraceSource& source)
    : impl_(std::make_unique<Impl>(options, std::move(model), source)) {}
HeadLearner::~HeadLearner() = default;

void HeadLearner::observe(std::uint64_t sequence, const RequestTrace& trace) {
  // The server taps other layers now (another --spec-head): what was learned reads none of these.
  if (impl_->layers && *impl_->layers != trace.tap_layers)
    impl_ = std::make_unique<Impl>(impl_->options, impl_->model, impl_->source);
  impl_->observe(sequence, trace);
}
bool HeadLearner::work(std::size_t fresh_waiting) { return impl_->work(fresh_waiting); }
void HeadLearner::judged(std::int64_t trained_tokens, bool gained) {
  impl_->schedule.judged(trained_tokens, gained);
}
bool HeadLearner::trained() const { return impl_->step > 0; }
std::int64_t HeadLearner::step() const { return impl_->step; }
double HeadLearner::loss() const { return impl_->loss.value; }
std::int64_t HeadLearner::chains() const { return impl_->chains; }

void HeadLearner::add_to(Bundle& bundle) const {
  const VocabularyRows& rows = *impl_->model;
  const double price =
      double(rows.output_row_bytes()) / double(std::max<std::size_t>(1, rows.step_bytes()));
  HeadParts parts =
      impl_->average.parts(impl_->counts.frequent(impl_->vocabulary->tokens, price / kSeldomRight));
  if (impl_->layers && impl_->layers->size() == kHeadTaps)
    std::ranges::copy(*impl_->layers, parts.taps.emplace().begin());
  add_head(bundle, parts);
}

void HeadLearner::save(StateMap& map) const {
  const Impl& s = *impl_;
  map.put_one("head.trained", std::uint8_t(s.vocabulary != nullptr));
  if (s.layers) map.put("head.tap_layers", *s.layers);
  map.put("head.mass", s.counts.mass());
  map.put_one("head.next_recount", s.next_recount);
  map.put_one("head.chains", s.chains);
  map.put_one("head.step", s.step);
  map.put_one("head.loss", s.loss.value);
  s.schedule.save(map, "head");
  if (!s.vocabulary) return;
  map.put("head.vocabulary", s.vocabulary->tokens);
  put(map, "head.value", s.head.all());
  put(map, "head.average", s.average.all());
  put(map, "head.first", s.adam->first_);
  put(map, "head.second", s.adam->second_);
  put(map, "head.steps", s.adam->steps_);
  put(map, "head.gain_first", s.gain_adam->first_);
  put(map, "head.gain_second", s.gain_adam->second_);
  put(map, "head.gain_steps", s.gain_adam->steps_);
  put(map, "head.table_first", s.table_adam->first_);
  put(map, "head.table_second", s.table_adam->second_);
  put(map, "head.table_steps", s.table_adam->steps_);
}

Status HeadLearner::restore(const StateMap& map) {
  const auto wrong = [](const char* what) {
    return Error{ErrorCode::kInvalidInput, std::string("learner state: head: ") + what};
  };
  auto made = std::make_unique<Impl>(impl_->options, impl_->model, impl_->source);
  Impl& s = *made;
  if (!map.has("head.trained")) {  // of a trainer that had no model at hand
    return Ok{};
  }
  if (!s.counts.restore(map.get<float>("head.mass"))) return wrong("counts of another vocabulary");
  if (map.has("head.tap_layers")) s.layers = map.get<std::int32_t>("head.tap_layers");
  s.next_recount = map.get_one<std::int64_t>("head.next_recount", kFirstVocabularyTokens);
  s.chains = map.get_one<std::int64_t>("head.chains", 0);
  s.step = map.get_one<std::int64_t>("head.step", 0);
  s.loss.value = map.get_one<double>("head.loss", 0);
  if (!s.schedule.restore(map, "head")) return wrong("schedule");
  if (map.get_one<std::uint8_t>("head.trained", 0)) {
    auto tokens = map.get<TokenId>("head.vocabulary");
    if (std::int64_t(tokens.size()) != s.options.vocabulary)
      return wrong("a vocabulary of another size");
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] < 0 || tokens[i] >= s.model->n_vocab() || (i && tokens[i] <= tokens[i - 1]))
        return wrong("vocabulary");
    }
    s.vocabulary = std::make_unique<HeadVocabulary>(std::move(tokens), *s.model, s.product_type);
    s.create(HeadParameters::zeros(s.model->hidden(), s.options.inner));
    if (!get(map, "head.value", s.head.all()) || !get(map, "head.average", s.average.all()) ||
        !get(map, "head.first", s.adam->first_) || !get(map, "head.second", s.adam->second_) ||
        !get(map, "head.steps", s.adam->steps_) ||
        !get(map, "head.gain_first", s.gain_adam->first_) ||
        !get(map, "head.gain_second", s.gain_adam->second_) ||
        !get(map, "head.gain_steps", s.gain_adam->steps_) ||
        !get(map, "head.table_first", s.table_adam->first_) ||
        !get(map, "head.table_second", s.table_adam->second_) ||
        !get(map, "head.table_steps", s.table_adam->steps_)) {
      return wrong("weights of another shape, or not finite");
    }
    s.round();
  }
  impl_ = std::move(made);
  return Ok{};
}

}  // namespace foretoken::trainer
