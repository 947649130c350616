#include "trainer/head/head_learner.h"

#include <cmath>

#include "runtime/speculate/head/head_bundle.h"
#include "trainer/examples/draft_vocabulary.h"
#include "trainer/examples/example_cache.h"
#include "trainer/head/adam.h"
#include "trainer/head/head_batch.h"
#include "trainer/head/step_trainer.h"
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

class HeadLearner final : public StepTrainer {
 public:
  HeadLearner(const HeadOptions& options, std::shared_ptr<const VocabularyRows> model,
              const TraceSource& source)
      : StepTrainer("head", options, std::move(model), source),
        options_(options),
        cache_(options.cache_bytes, model_->hidden(), model_->n_vocab(),
               options.teacher_temperature, source),
        counts_(model_->n_vocab()),
        product_type_(!options.bf16.has_value() ? fast_product_type()
                      : *options.bf16           ? torch::kBFloat16
                                                : torch::kFloat32) {}

  bool goes_on_with(const RequestTrace& trace) const override {
    return !layers_ || *layers_ == trace.tap_layers;
  }

  void observe(std::uint64_t sequence, const RequestTrace& trace) override {
    const auto example = cache_.put(sequence, trace);
    if (!example) return;
    if (!layers_) layers_ = example->tap_layers;
    counts_.observe(trace);
    schedule_.observe(sequence, starts_of(sequence, *example), example->n, example->domain);
  }

  void add_to(Bundle& bundle) const override {
    const double price =
        double(model_->output_row_bytes()) / double(std::max<std::size_t>(1, model_->step_bytes()));
    HeadParts parts = average_.parts(counts_.frequent(vocabulary_->tokens, price / kSeldomRight));
    if (layers_ && layers_->size() == kHeadTaps)
      std::ranges::copy(*layers_, parts.taps.emplace().begin());
    add_head(bundle, parts);
  }

  void save(StateMap& map) const override {
    map.put_one("head.trained", std::uint8_t(vocabulary_ != nullptr));
    if (layers_) map.put("head.tap_layers", *layers_);
    map.put("head.mass", counts_.mass());
    map.put_one("head.next_recount", next_recount_);
    save_steps(map);
    if (!vocabulary_) return;
    map.put("head.vocabulary", vocabulary_->tokens);
    put(map, "head.value", head_.all());
    put(map, "head.average", average_.all());
    adam_->save(map, "head.");
    gain_adam_->save(map, "head.gain_");
    table_adam_->save(map, "head.table_");
  }

  Status restore(const StateMap& map) override {
    if (!map.has("head.trained")) return Ok{};  // of a trainer that had no model at hand
    if (!counts_.restore(map.get<float>("head.mass"))) return wrong("counts of another vocabulary");
    if (map.has("head.tap_layers")) layers_ = map.get<std::int32_t>("head.tap_layers");
    next_recount_ = map.get_one<std::int64_t>("head.next_recount", kFirstVocabularyTokens);
    if (!restore_steps(map)) return wrong("schedule");
    if (!map.get_one<std::uint8_t>("head.trained", 0)) return Ok{};
    auto tokens = map.get<TokenId>("head.vocabulary");
    if (std::int64_t(tokens.size()) != options_.vocabulary)
      return wrong("a vocabulary of another size");
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] < 0 || tokens[i] >= model_->n_vocab() || (i && tokens[i] <= tokens[i - 1]))
        return wrong("vocabulary");
    }
    vocabulary_ = std::make_unique<HeadVocabulary>(std::move(tokens), *model_, product_type_);
    create(HeadParameters::zeros(model_->hidden(), options_.inner));
    if (!get(map, "head.value", head_.all()) || !get(map, "head.average", average_.all()) ||
        !adam_->restore(map, "head.") || !gain_adam_->restore(map, "head.gain_") ||
        !table_adam_->restore(map, "head.table_"))
      return wrong("weights of another shape, or not finite");
    round();
    return Ok{};
  }

 private:
  void create(HeadParameters initial) {
    head_ = std::move(initial);
    for (torch::Tensor& p : head_.all()) p.set_requires_grad(true);
    average_ = head_.clone();
    round();
    adam_ = std::make_unique<Adam>(head_.weights());
    table_adam_ = std::make_unique<Adam>(head_.table());
    gain_adam_ = std::make_unique<Adam>(std::vector<torch::Tensor>{head_.gain});
  }

  // What steps are computed with, after every change of the weights.
  void round() { working_ = product_type_ == torch::kFloat32 ? head_ : head_.rounded_copy(); }

  // Between steps only: what a step was begun with stays until it is done.
  void recount() {
    const std::int64_t tokens = schedule_.tokens();
    if (tokens < next_recount_) return;
    next_recount_ = std::max(tokens + tokens / 2, kFirstVocabularyTokens);
    auto best = counts_.most_frequent(std::size_t(options_.vocabulary));
    const double gain =
        vocabulary_ ? counts_.coverage(best) - counts_.coverage(vocabulary_->tokens) : 1;
    if (gain < kVocabularyGain) return;
    if (vocabulary_) log_vocabulary_counted(tokens, gain);
    vocabulary_ = std::make_unique<HeadVocabulary>(std::move(best), *model_, product_type_);
    if (!head_.fc.defined()) {
      create(HeadParameters::initial(model_->hidden(), options_.inner, options_.vocabulary,
                                     options_.seed));
      log_head_begun(model_->hidden(), options_.inner, options_.vocabulary, tokens);
    }
  }

  bool ready() override {
    recount();
    return vocabulary_ != nullptr;
  }

  std::optional<Piece> starts(std::uint64_t sequence) override {
    const auto example = cache_.get(sequence);
    if (!example || example->tap_layers != layers_) return std::nullopt;
    return starts_of(sequence, *example);
  }

  void slice() override {
    std::vector<ChainRange> ranges;
    std::int64_t room = product_type_ == torch::kFloat32 ? options_.chains_per_slice
                                                         : options_.chains_per_fast_slice;
    while (room > 0) {
      const std::optional<Piece> piece = schedule_.take(room);
      if (!piece) break;
      if (auto example = cache_.get(piece->sequence)) {
        ranges.push_back(
            {std::move(example), std::int32_t(piece->start), std::int32_t(piece->count)});
      }
      room -= piece->count;
    }
    if (ranges.empty()) return;
    const HeadBatch made = make_head_batch(ranges, options_.unroll, *model_);
    const auto r = run_head(working_, made.x, made.embedded);
    const HeadLoss loss = head_loss(*options_.objective, working_, *vocabulary_, made, r,
                                    step_weights_, options_.refused_weight);
    for (std::size_t i = 0; i < std::size_t(made.n); ++i) {
      if (const HeadExample* example = made.rows[i].example)
        schedule_.watch(example->domain, loss.predicted[i], loss.accepted[i]);
    }
    r.backward(loss.r_gradient);
    if (product_type_ != torch::kFloat32) gather_gradients();
    step_loss_ += loss.sum;
    step_weight_ += loss.weight;
    chains_ += made.n;
  }

  // bf16 has 8 bits: slices are summed in fp32.
  void gather_gradients() {
    torch::NoGradGuard no_grad;
    const auto add = [](const torch::Tensor& to, torch::Tensor& from) {
      add_gradient(to, from.grad());
      from.mutable_grad().reset();
    };
    add(head_.fc, working_.fc);
    add(head_.inner, working_.inner);
    add(head_.down, working_.down);
  }

  void end_step() override {
    std::vector<torch::Tensor> gradients, table_gradients;
    for (const torch::Tensor& p : head_.weights()) gradients.push_back(p.grad());
    for (const torch::Tensor& p : head_.table()) table_gradients.push_back(p.grad());
    // The mean over positions, weights included, then the clip.
    const double scale = 1 / step_weight_;
    if (!scale_and_clip(gradients, scale, options_.clip)) {
      log_step_left_out();
      clear_gradients();
      return;
    }
    {
      torch::NoGradGuard no_grad;
      at::_foreach_mul_(table_gradients, scale);
      head_.gain.mutable_grad().mul_(scale);
    }
    ++step_;
    adam_->step(schedule_.learning_rate() * warmup());
    gain_adam_->step(options_.gain_learning_rate * warmup() * std::abs(head_.gain.item<double>()));
    if (schedule_.fresh()) table_adam_->step(options_.table_learning_rate * warmup());
    clear_gradients();
    round();
    std::vector<torch::Tensor> now;
    for (const torch::Tensor& p : head_.all()) now.push_back(p.detach());
    move_average(average_.all(), now, options_.average_decay, step_);
    loss_.add(step_loss_ / step_weight_);
  }

  void clear_gradients() {
    for (const torch::Tensor& p : head_.all()) {
      if (p.grad().defined()) p.mutable_grad().zero_();
    }
  }

  const HeadOptions options_;
  ExampleCache cache_;
  VocabularyCounts counts_;
  // Of the hidden states that it learns from; nullopt before the first request.
  std::optional<std::vector<std::int32_t>> layers_;
  std::unique_ptr<HeadVocabulary> vocabulary_;  // null before the first step
  const torch::ScalarType product_type_;
  HeadParameters head_, average_, working_;
  std::unique_ptr<Adam> adam_, table_adam_, gain_adam_;
  std::int64_t next_recount_ = kFirstVocabularyTokens;
};

}  // namespace

std::unique_ptr<HeadTrainer> make_head_learner(const HeadOptions& options,
                                               std::shared_ptr<const VocabularyRows> model,
                                               const TraceSource& source) {
  const HeadOptions for_model = sized(options, *model);
  return std::make_unique<HeadLearner>(for_model, std::move(model), source);
}

}  // namespace foretoken::trainer
