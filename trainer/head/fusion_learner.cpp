#include "trainer/head/fusion_learner.h"

#include <cmath>
#include <limits>

#include "trainer/head/fusion_head.h"
#include "trainer/head/torch_headers.h"
#include "trainer/objective/objective.h"

namespace foretoken::trainer {

struct FusionLearner::Impl {
  Impl(const FusionLearnerOptions& options_in, const FusionTable& initial)
      : options(options_in), head(initial), average(initial), optimizer(make_optimizer()) {}

  // No weight decay: a class seldom seen keeps its prior instead of sinking to zero. A second
  // moment that forgets in about 20 steps (.95) suits a stream whose domains change.
  torch::optim::AdamW make_optimizer() {
    return torch::optim::AdamW(
        head->parameters(),
        torch::optim::AdamWOptions(options.learning_rate).betas({0.9, 0.95}).weight_decay(0.0));
  }

  void train_step(std::span<const FusionPosition> positions) {
    const FusionBatch batch = make_batch(positions);
    const auto log_q = head->forward(batch);
    const auto q = log_q.detach().exp();
    auto gradient = torch::empty_like(q);  // of the mean over positions
    const auto n = std::size_t(q.size(0)), width = std::size_t(q.size(1));
    double step_loss = 0;
    for (std::size_t row = 0; row < n; ++row) {
      const auto row_of = [&](const torch::Tensor& of) {
        return std::span<float>(of.data_ptr<float>() + row * width, width);
      };
      step_loss += row_objective(*options.objective, row_of(batch.p), row_of(q), row_of(gradient));
    }
    step_loss /= double(n);
    optimizer.zero_grad();
    log_q.backward(gradient.div_(double(n)));
    optimizer.step();
    ++step;
    loss = std::isnan(loss) ? step_loss : 0.95 * loss + 0.05 * step_loss;
    const auto decay = static_cast<float>(
        std::min(options.average_decay, (1.0 + double(step)) / (10.0 + double(step))));
    const FusionTable now = head->table();
    for (std::size_t i = 0; i < now.bias.size(); ++i) {
      average.bias[i] = decay * average.bias[i] + (1 - decay) * now.bias[i];
    }
    average.other = decay * average.other + (1 - decay) * now.other;
  }

  FusionLearnerOptions options;
  FusionHead head;
  FusionTable average;
  torch::optim::AdamW optimizer;
  std::int64_t step = 0;
  double loss = std::numeric_limits<double>::quiet_NaN();
};

FusionLearner::FusionLearner(const FusionLearnerOptions& options, const FusionTable& initial)
    : impl_(std::make_unique<Impl>(options, initial)) {}
FusionLearner::~FusionLearner() = default;

void FusionLearner::train(std::span<const FusionPosition> positions) {
  const auto size = std::size_t(impl_->options.positions_per_step);
  while (!positions.empty()) {
    const std::size_t n = positions.size() < size + size / 2 ? positions.size() : size;
    impl_->train_step(positions.first(n));
    positions = positions.subspan(n);
  }
}

FusionTable FusionLearner::average() const { return impl_->average; }
std::int64_t FusionLearner::step() const { return impl_->step; }
double FusionLearner::loss() const { return impl_->loss; }

FusionLearnerState FusionLearner::state() const {
  FusionLearnerState state{impl_->head->table(), impl_->average, {}, {}, impl_->step, impl_->loss};
  for (const torch::Tensor& parameter : impl_->head->parameters()) {
    const auto& states = impl_->optimizer.state();
    const auto found = states.find(parameter.unsafeGetTensorImpl());
    if (found == states.end()) break;
    const auto& adam = static_cast<const torch::optim::AdamWParamState&>(*found->second);
    const auto append = [](std::vector<float>& to, const torch::Tensor& from) {
      to.insert(to.end(), from.data_ptr<float>(), from.data_ptr<float>() + from.numel());
    };
    append(state.first_moment, adam.exp_avg());
    append(state.second_moment, adam.exp_avg_sq());
  }
  return state;
}

void FusionLearner::restore(const FusionLearnerState& state) {
  torch::NoGradGuard no_grad;
  impl_->head->set_table(state.table);
  impl_->average = state.average;
  impl_->step = state.step;
  impl_->loss = state.loss;
  impl_->optimizer.state().clear();
  std::size_t at = 0;
  for (const torch::Tensor& parameter : impl_->head->parameters()) {
    const auto n = std::size_t(parameter.numel());
    if (at + n > state.first_moment.size() || at + n > state.second_moment.size()) break;
    const auto tensor_of = [&](const std::vector<float>& values) {
      return torch::from_blob(const_cast<float*>(values.data() + at), parameter.sizes(),
                              torch::kFloat32)
          .clone();
    };
    auto adam = std::make_unique<torch::optim::AdamWParamState>();
    adam->step(state.step);
    adam->exp_avg(tensor_of(state.first_moment));
    adam->exp_avg_sq(tensor_of(state.second_moment));
    impl_->optimizer.state()[parameter.unsafeGetTensorImpl()] = std::move(adam);
    at += n;
  }
}

}  // namespace foretoken::trainer
