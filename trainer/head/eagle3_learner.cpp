#include "trainer/head/eagle3_learner.h"

#include "runtime/speculate/head/draft_head.h"
#include "runtime/speculate/head/head_bundle.h"
#include "trainer/examples/head_example.h"
#include "trainer/head/adam.h"
#include "trainer/head/eagle3_twin.h"
#include "trainer/head/step_trainer.h"
#include "trainer/objective/objective.h"

namespace foretoken::trainer {
namespace {

class Eagle3Learner final : public StepTrainer {
 public:
  Eagle3Learner(const Eagle3LearnerOptions& options, std::shared_ptr<const VocabularyRows> model,
                const TraceSource& source)
      : StepTrainer("eagle3", options, std::move(model), source),
        options_(options),
        head_(*Eagle3Parameters::of(options.start)) {
    const auto found = *head_.config.taps(model_->n_layers());
    taps_ = {found[0], found[1], found[2], model_->n_layers()};
    for (const auto& [name, parameter] : head_.named()) {
      if (name.starts_with("fc_norm.")) continue;  // rows of one parameter
      parameters_.push_back(parameter);
    }
    if (head_.fc_norm.defined()) parameters_.push_back(head_.fc_norm);
    for (torch::Tensor& p : parameters_) {
      p.set_requires_grad(true);
      average_.push_back(p.detach().clone());
    }
    adam_ = std::make_unique<Adam>(parameters_);
    slot_of_.assign(std::size_t(model_->n_vocab()), -1);
    for (std::size_t i = 0; i < head_.vocab.size(); ++i)
      slot_of_[std::size_t(head_.vocab[i])] = std::int32_t(i);
  }

  void observe(std::uint64_t sequence, const RequestTrace& trace) override {
    if (const auto example = example_of(trace))
      schedule_.observe(sequence, starts_of(sequence, *example), example->n, example->domain);
  }

  void add_to(Bundle& bundle) const override {
    add_eagle3(bundle, served(), HeadTerms::none(head_.config.hidden));
  }

  void save(StateMap& map) const override {
    save_steps(map);
    map.put("eagle3.taps", std::span<const int>(taps_));
    put(map, "eagle3.value", parameters_);
    put(map, "eagle3.average", average_);
    adam_->save(map, "eagle3.");
  }

  Status restore(const StateMap& map) override {
    if (!map.has("eagle3.step")) return Ok{};  // of a trainer that trained another head
    if (!std::ranges::equal(map.get<int>("eagle3.taps"), taps_)) return wrong("of other layers");
    if (!get(map, "eagle3.value", parameters_) || !get(map, "eagle3.average", average_) ||
        !adam_->restore(map, "eagle3."))
      return wrong("weights of another shape, or not finite");
    if (!restore_steps(map)) return wrong("schedule");
    return Ok{};
  }

 private:
  bool reads(const RequestTrace& trace) const {
    const auto& layers = trace.tap_layers;
    return layers.empty() ? taps_ == head_taps(model_->n_layers())
                          : std::ranges::equal(layers, taps_);
  }
  // What a request teaches; nullopt: nothing.
  std::optional<HeadExample> example_of(const RequestTrace& trace) const {
    if (!reads(trace)) return std::nullopt;
    return head_example(trace, model_->hidden(), model_->n_vocab(), options_.teacher_temperature);
  }

  std::optional<Piece> starts(std::uint64_t sequence) override {
    const auto trace = source_.trace(sequence);
    const auto example = trace ? example_of(*trace) : std::nullopt;
    if (!example) return std::nullopt;
    return starts_of(sequence, *example);
  }

  Eagle3Segment segment_of(const RequestTrace& trace, const Piece& piece) const {
    const std::int64_t hidden = model_->hidden(), width = head_.config.hidden;
    // The chain of generated token i has it as its newest token, and begins at the row before.
    const std::int64_t chain_row = trace.n_prompt - 1 + piece.start;
    Eagle3Segment s;
    s.first = std::max<std::int64_t>(trace.tap_first, chain_row - options_.context_rows);
    s.n_chains = piece.count;
    const std::int64_t rows = chain_row + piece.count - s.first;
    s.taps = torch::empty({rows, kEagle3Taps * hidden});
    s.embedded = torch::zeros({rows + options_.unroll - 1, width});
    const FeatureView view{trace.tap_values.data(),
                           trace.tap_scales.data(),
                           hidden,
                           trace.tap_first,
                           trace.tap_first + trace.tap_positions(),
                           trace.tap_first,
                           trace.tap_positions()};
    for (std::int64_t r = 0; r < rows; ++r)
      view.decode(s.first + r, kEagle3Taps, s.taps.data_ptr<float>() + r * kEagle3Taps * hidden);
    for (std::int64_t r = 0; r < s.embedded.size(0); ++r) {
      const auto at = std::size_t(s.first + r + 1);
      if (at >= trace.tokens.size()) break;  // past the end: its rows weigh nothing
      float* to = s.embedded.data_ptr<float>() + r * width;
      const TokenId token = trace.tokens[at];
      if (head_.embedding.defined())
        std::copy_n(head_.embedding.data_ptr<float>() + token * width, width, to);
      else
        model_->embedding(token, to);
    }
    return s;
  }

  void slice() override {
    const Piece piece = *schedule_.take(options_.chains_per_slice);
    const auto trace = source_.trace(piece.sequence);
    const auto example = trace ? example_of(*trace) : std::nullopt;
    if (!example) return;
    if (!std::ranges::all_of(trace->tokens,
                             [&](TokenId t) { return t >= 0 && t < model_->n_vocab(); }))
      return;
    const Eagle3Segment segment = segment_of(*trace, piece);
    const auto r = run_eagle3(head_, segment, options_.unroll, kHeadWindow);
    const auto logits = torch::mm(r, head_.lm_head.t());
    const std::int64_t n = piece.count, width = logits.size(1);
    const float inverse_temperature = example->inverse_temperature;
    const auto q = torch::softmax(logits.detach() * inverse_temperature, 1);
    if (schedule_.fresh()) watch(*example, piece, q.narrow(0, 0, n));
    auto factor = torch::zeros({logits.size(0), 1});
    std::vector<std::array<std::pair<std::int32_t, float>, kTeacherTokens>> spikes(
        std::size_t(logits.size(0)));
    std::array<float, kTeacherTokens> p{}, q_of{}, g{};
    for (std::int64_t row = 0; row < logits.size(0); ++row) {
      spikes[std::size_t(row)].fill({-1, 0.0f});
      const std::int64_t step_index = row / n, predicted = piece.start + row % n + 1 + step_index;
      if (predicted >= example->n) continue;
      const float* q_row = q.data_ptr<float>() + row * width;
      auto& to = spikes[std::size_t(row)];
      for (std::size_t t = 0; t < kTeacherTokens; ++t) {
        const auto at = std::size_t(predicted) * kTeacherTokens + t;
        const TokenId token = example->teacher_ids[at];
        to[t].first = token < 0 ? -1 : slot_of_[std::size_t(token)];
        p[t] = example->teacher_p[at];
        q_of[t] = to[t].first < 0 ? 0.0f : q_row[to[t].first];
      }
      const double weight = step_weights_[std::size_t(step_index)];
      step_loss_ += weight * row_objective(*options_.objective, p, q_of, g);
      step_weight_ += weight;
      // d loss / d logit_v = g_v - q_v * sum g.
      float sum = 0;
      for (std::size_t t = 0; t < kTeacherTokens; ++t) {
        to[t].second = g[t] * float(weight) * inverse_temperature;
        sum += to[t].second;
      }
      factor.data_ptr<float>()[row] = -sum;
    }
    auto gradient = q * factor;
    for (std::int64_t row = 0; row < logits.size(0); ++row)
      for (const auto& [slot, value] : spikes[std::size_t(row)])
        if (slot >= 0) gradient.data_ptr<float>()[row * width + slot] += value;
    logits.backward(gradient);
    chains_ += n;
  }

  // q: [chains, V] of their first steps.
  void watch(const HeadExample& example, const Piece& piece, const torch::Tensor& q) {
    const auto [most, chosen] = q.max(1);
    for (std::int64_t c = 0; c < piece.count && piece.start + c + 1 < example.n; ++c) {
      const TokenId choice = head_.vocab[std::size_t(chosen.data_ptr<std::int64_t>()[c])];
      schedule_.watch(example.domain, most.data_ptr<float>()[c],
                      choice == example.tokens[std::size_t(piece.start + c + 1)]);
    }
  }

  void end_step() override {
    std::vector<torch::Tensor> gradients;
    for (const torch::Tensor& p : parameters_) {
      if (!p.grad().defined()) p.mutable_grad() = torch::zeros_like(p);
      gradients.push_back(p.grad());
    }
    // The mean over positions, weights included, then the clip.
    if (scale_and_clip(gradients, 1 / step_weight_, options_.clip)) {
      ++step_;
      adam_->step(schedule_.learning_rate() * warmup());
      move_average(average_, adam_->values(), options_.average_decay, step_);
      loss_.add(step_loss_ / step_weight_);
    }
    torch::NoGradGuard no_grad;
    for (torch::Tensor& gradient : gradients) gradient.zero_();
  }

  // The averaged values in the checkpoint's names and types.
  Eagle3Checkpoint served() const {
    torch::NoGradGuard no_grad;
    std::vector<torch::Tensor> now;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      now.push_back(parameters_[i].detach().clone());
      parameters_[i].detach().copy_(average_[i]);
    }
    Eagle3Checkpoint out = head_.rounded_into(options_.start);
    for (std::size_t i = 0; i < parameters_.size(); ++i) parameters_[i].detach().copy_(now[i]);
    return out;
  }

  const Eagle3LearnerOptions options_;
  HeadTaps taps_{};
  const Eagle3Parameters head_;
  std::vector<torch::Tensor> parameters_, average_;
  std::unique_ptr<Adam> adam_;
  std::vector<std::int32_t> slot_of_;  // [n_vocab], -1: not in the draft vocabulary
};

}  // namespace

std::unique_ptr<HeadTrainer> make_eagle3_learner(const Eagle3LearnerOptions& options,
                                                 std::shared_ptr<const VocabularyRows> model,
                                                 const TraceSource& source) {
  return std::make_unique<Eagle3Learner>(options, std::move(model), source);
}

}  // namespace foretoken::trainer
