#include "trainer/head/eagle3_learner.h"

#include <cmath>

#include "runtime/speculate/head/draft_head.h"
#include "runtime/speculate/head/head_bundle.h"
#include "trainer/examples/head_example.h"
#include "trainer/head/adam.h"
#include "trainer/head/eagle3_twin.h"
#include "trainer/objective/objective.h"

namespace foretoken::trainer {
struct Eagle3Learner::Impl {
  Impl(const Eagle3LearnerOptions& options_in, std::shared_ptr<const VocabularyRows> model_in,
       const TraceSource& source_in)
      : options(options_in),
        model(std::move(model_in)),
        source(source_in),
        schedule(options, source_in) {
    auto made = Eagle3Parameters::of(options.start);
    head = std::move(*made);
    const auto found = *head.config.taps(model->n_layers());
    taps = {found[0], found[1], found[2], model->n_layers()};
    for (const auto& [name, parameter] : head.named()) {
      if (name.starts_with("fc_norm.")) continue;  // rows of one parameter
      parameters.push_back(parameter);
    }
    if (head.fc_norm.defined()) parameters.push_back(head.fc_norm);
    for (torch::Tensor& p : parameters) {
      p.set_requires_grad(true);
      average.push_back(p.detach().clone());
    }
    adam = std::make_unique<Adam>(parameters);
    slot_of.assign(std::size_t(model->n_vocab()), -1);
    for (std::size_t i = 0; i < head.vocab.size(); ++i)
      slot_of[std::size_t(head.vocab[i])] = std::int32_t(i);
    for (int s = 0; s < options.unroll; ++s)
      step_weights.push_back(std::pow(options.step_weight, s));
  }

  bool reads(const RequestTrace& trace) const {
    const auto& layers = trace.tap_layers;
    return layers.empty() ? taps == head_taps(model->n_layers()) : std::ranges::equal(layers, taps);
  }
  // What a request teaches; nullopt: nothing.
  std::optional<HeadExample> example_of(const RequestTrace& trace) const {
    if (!reads(trace)) return std::nullopt;
    return head_example(trace, model->hidden(), model->n_vocab(), options.teacher_temperature);
  }

  void observe(std::uint64_t sequence, const RequestTrace& trace) {
    const auto example = example_of(trace);
    if (!example) return schedule.observe(sequence, std::nullopt, 0);
    schedule.observe(sequence, starts_of(sequence, *example), example->n, example->domain);
  }

  bool begin_step(std::size_t fresh_waiting) {
    step_loss = step_weight_sum = 0;
    return schedule.begin(fresh_waiting, [this](std::uint64_t sequence) -> std::optional<Piece> {
      const auto trace = source.trace(sequence);
      const auto example = trace ? example_of(*trace) : std::nullopt;
      if (!example) return std::nullopt;
      return starts_of(sequence, *example);
    });
  }

  bool work(std::size_t fresh_waiting) {
    if (!schedule.under_way() && !begin_step(fresh_waiting)) return false;
    slice(*schedule.take(options.chains_per_slice));
    if (!schedule.under_way()) end_step();
    return true;
  }

  Eagle3Segment segment_of(const RequestTrace& trace, const Piece& piece) const {
    const std::int64_t hidden = model->hidden(), width = head.config.hidden;
    // The chain of generated token i has it as its newest token, and begins at the row before.
    const std::int64_t chain_row = trace.n_prompt - 1 + piece.start;
    Eagle3Segment s;
    s.first = std::max<std::int64_t>(trace.tap_first, chain_row - options.context_rows);
    s.n_chains = piece.count;
    const std::int64_t rows = chain_row + piece.count - s.first;
    s.taps = torch::empty({rows, kEagle3Taps * hidden});
    s.embedded = torch::zeros({rows + options.unroll - 1, width});
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
      if (head.embedding.defined())
        std::copy_n(head.embedding.data_ptr<float>() + token * width, width, to);
      else
        model->embedding(token, to);
    }
    return s;
  }

  // Gradients of a piece's chains.
  void slice(const Piece& piece) {
    const auto trace = source.trace(piece.sequence);
    const auto example = trace ? example_of(*trace) : std::nullopt;
    if (!example) return;
    if (!std::ranges::all_of(trace->tokens,
                             [&](TokenId t) { return t >= 0 && t < model->n_vocab(); }))
      return;
    const Eagle3Segment segment = segment_of(*trace, piece);
    const auto r = run_eagle3(head, segment, options.unroll, kHeadWindow);
    const auto logits = torch::mm(r, head.lm_head.t());
    const std::int64_t n = piece.count, width = logits.size(1);
    const float inverse_temperature = example->inverse_temperature;
    const auto q = torch::softmax(logits.detach() * inverse_temperature, 1);
    if (schedule.fresh()) watch(*example, piece, q.narrow(0, 0, n));
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
        to[t].first = token < 0 ? -1 : slot_of[std::size_t(token)];
        p[t] = example->teacher_p[at];
        q_of[t] = to[t].first < 0 ? 0.0f : q_row[to[t].first];
      }
      const double weight = step_weights[std::size_t(step_index)];
      step_loss += weight * row_objective(*options.objective, p, q_of, g);
      step_weight_sum += weight;
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
    chains += n;
  }

  // q: [chains, V] of their first steps.
  void watch(const HeadExample& example, const Piece& piece, const torch::Tensor& q) {
    const auto [most, chosen] = q.max(1);
    for (std::int64_t c = 0; c < piece.count && piece.start + c + 1 < example.n; ++c) {
      const TokenId choice = head.vocab[std::size_t(chosen.data_ptr<std::int64_t>()[c])];
      schedule.watch(example.domain, most.data_ptr<float>()[c],
                     choice == example.tokens[std::size_t(piece.start + c + 1)]);
    }
  }

  void end_step() {
    if (step_weight_sum <= 0) return;
    schedule.end();
    std::vector<torch::Tensor> gradients;
    for (const torch::Tensor& p : parameters) {
      if (!p.grad().defined()) p.mutable_grad() = torch::zeros_like(p);
      gradients.push_back(p.grad());
    }
    // The mean over positions, weights included, then the clip.
    if (scale_and_clip(gradients, 1 / step_weight_sum, options.clip)) {
      ++step;
      adam->step(schedule.learning_rate() * std::min(1.0, double(step) / options.warmup_steps));
      move_average(average, adam->values(), options.average_decay, step);
      loss.add(step_loss / step_weight_sum);
    }
    torch::NoGradGuard no_grad;
    for (torch::Tensor& gradient : gradients) gradient.zero_();
  }

  // The averaged values in the checkpoint's names and types.
  Eagle3Checkpoint served() const {
    torch::NoGradGuard no_grad;
    std::vector<torch::Tensor> now;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      now.push_back(parameters[i].detach().clone());
      parameters[i].detach().copy_(average[i]);
    }
    Eagle3Checkpoint out = head.rounded_into(options.start);
    for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].detach().copy_(now[i]);
    return out;
  }

  Eagle3LearnerOptions options;
  std::shared_ptr<const VocabularyRows> model;
  const TraceSource& source;
  StepSchedule schedule;
  HeadTaps taps{};
  std::vector<double> step_weights;
  Eagle3Parameters head;
  std::vector<torch::Tensor> parameters, average;
  std::unique_ptr<Adam> adam;
  std::vector<std::int32_t> slot_of;  // [n_vocab], -1: not in the draft vocabulary

  std::int64_t chains = 0;
  double step_loss = 0, step_weight_sum = 0;  // of the step under way
  std::int64_t step = 0;
  SmoothedLoss loss;
};

Eagle3Learner::Eagle3Learner(const Eagle3LearnerOptions& options,
                             std::shared_ptr<const VocabularyRows> model, const TraceSource& source)
    : impl_(std::make_unique<Impl>(options, std::move(model), source)) {}
Eagle3Learner::~Eagle3Learner() = default;

void Eagle3Learner::observe(std::uint64_t sequence, const RequestTrace& trace) {
  impl_->observe(sequence, trace);
}
bool Eagle3Learner::work(std::size_t fresh_waiting) { return impl_->work(fresh_waiting); }
void Eagle3Learner::judged(std::int64_t trained_tokens, bool gained) {
  impl_->schedule.judged(trained_tokens, gained);
}
bool Eagle3Learner::trained() const { return impl_->step > 0; }
std::int64_t Eagle3Learner::step() const { return impl_->step; }
double Eagle3Learner::loss() const { return impl_->loss.value; }
std::int64_t Eagle3Learner::chains() const { return impl_->chains; }

void Eagle3Learner::add_to(Bundle& bundle) const {
  add_eagle3(bundle, impl_->served(), HeadTerms::none(impl_->head.config.hidden));
}

void Eagle3Learner::save(StateMap& map) const {
  const Impl& s = *impl_;
  map.put_one("eagle3.chains", s.chains);
  map.put_one("eagle3.step", s.step);
  map.put_one("eagle3.loss", s.loss.value);
  s.schedule.save(map, "eagle3");
  map.put("eagle3.taps", std::span<const int>(s.taps));
  put(map, "eagle3.value", s.parameters);
  put(map, "eagle3.average", s.average);
  put(map, "eagle3.first", s.adam->first_);
  put(map, "eagle3.second", s.adam->second_);
  put(map, "eagle3.steps", s.adam->steps_);
}

Status Eagle3Learner::restore(const StateMap& map) {
  auto made = std::make_unique<Impl>(impl_->options, impl_->model, impl_->source);
  Impl& s = *made;
  if (!map.has("eagle3.step")) return Ok{};  // of a trainer that trained another head
  if (!std::ranges::equal(map.get<int>("eagle3.taps"), s.taps))
    return Error{ErrorCode::kInvalidInput, "learner state: eagle3: of other layers"};
  if (!get(map, "eagle3.value", s.parameters) || !get(map, "eagle3.average", s.average) ||
      !get(map, "eagle3.first", s.adam->first_) || !get(map, "eagle3.second", s.adam->second_) ||
      !get(map, "eagle3.steps", s.adam->steps_)) {
    return Error{ErrorCode::kInvalidInput,
                 "learner state: eagle3: weights of another shape, or not finite"};
  }
  s.chains = map.get_one<std::int64_t>("eagle3.chains", 0);
  s.step = map.get_one<std::int64_t>("eagle3.step", 0);
  s.loss.value = map.get_one<double>("eagle3.loss", 0);
  if (!s.schedule.restore(map, "eagle3"))
    return Error{ErrorCode::kInvalidInput, "learner state: eagle3: schedule"};
  impl_ = std::move(made);
  return Ok{};
}

}  // namespace foretoken::trainer
