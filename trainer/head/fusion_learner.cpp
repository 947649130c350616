#include "trainer/head/fusion_learner.h"

#include <algorithm>
#include <limits>

#include "trainer/head/torch_headers.h"
#include "trainer/objective/objective.h"

namespace foretoken::trainer {
namespace {

// n = positions, m = kMaxCandidates.
struct FusionBatch {
  torch::Tensor fusion_class;         // int64 [n, m]; kFusionClasses where there is no candidate
  torch::Tensor token_of;             // int64 [n, m]
  torch::Tensor token_mask;           // bool  [n, m]: the distinct tokens that exist
  torch::Tensor p;                    // float [n, m + 1], "other" last
  torch::Tensor inverse_temperature;  // float [n, 1]
};

FusionBatch make_batch(std::span<const FusionPosition> positions) {
  const auto n = static_cast<std::int64_t>(positions.size());
  FusionBatch batch;
  batch.fusion_class = torch::full({n, kMaxCandidates}, kFusionClasses, torch::kInt64);
  batch.token_of = torch::zeros({n, kMaxCandidates}, torch::kInt64);
  batch.token_mask = torch::zeros({n, kMaxCandidates}, torch::kBool);
  batch.p = torch::zeros({n, kMaxCandidates + 1});
  batch.inverse_temperature = torch::ones({n, 1});
  auto* fusion_class = batch.fusion_class.data_ptr<std::int64_t>();
  auto* token_of = batch.token_of.data_ptr<std::int64_t>();
  auto* mask = batch.token_mask.data_ptr<bool>();
  auto* p = batch.p.data_ptr<float>();
  auto* inverse_temperature = batch.inverse_temperature.data_ptr<float>();
  for (const FusionPosition& position : positions) {
    for (int c = 0; c < position.n_candidates; ++c) {
      fusion_class[c] = position.fusion_class[std::size_t(c)];
      token_of[c] = position.token_of[std::size_t(c)];
    }
    for (int t = 0; t < position.n_tokens; ++t) {
      mask[t] = true;
      p[t] = position.p[std::size_t(t)];
    }
    p[kMaxCandidates] = position.p_other;
    *inverse_temperature++ = position.inverse_temperature;
    fusion_class += kMaxCandidates;
    token_of += kMaxCandidates;
    mask += kMaxCandidates;
    p += kMaxCandidates + 1;
  }
  return batch;
}

// log q, [n, kMaxCandidates + 1], "other" last; -inf where there is no token.
torch::Tensor log_probabilities(const torch::Tensor& bias, const torch::Tensor& other,
                                const FusionBatch& batch) {
  const auto padded = torch::cat({bias, torch::zeros({1})});  // the absent candidate adds nothing
  const auto contributions =
      padded.index_select(0, batch.fusion_class.flatten()).view_as(batch.fusion_class);
  const auto scores = torch::zeros({batch.fusion_class.size(0), kMaxCandidates})
                          .scatter_add(1, batch.token_of, contributions)
                          .masked_fill(~batch.token_mask, -std::numeric_limits<float>::infinity());
  const auto logits =
      torch::cat({scores, other.expand({scores.size(0), 1})}, 1) * batch.inverse_temperature;
  return torch::log_softmax(logits, 1);
}

std::vector<float> flat(const FusionTable& table) {
  std::vector<float> values(table.bias.begin(), table.bias.end());
  values.push_back(table.other);
  return values;
}

bool unflatten(const std::vector<float>& values, FusionTable& table) {
  if (values.size() != kFusionClasses + 1) return false;
  std::copy_n(values.begin(), kFusionClasses, table.bias.begin());
  table.other = values.back();
  return table.finite();
}

}  // namespace

struct FusionLearner::Impl {
  Impl(const FusionLearnerOptions& options_in, const FusionTable& initial)
      : options(options_in), average(initial) {
    set_table(initial);
  }

  FusionTable table() const {
    FusionTable table;
    std::copy_n(bias.data_ptr<float>(), kFusionClasses, table.bias.begin());
    table.other = *other.data_ptr<float>();
    return table;
  }
  void set_table(const FusionTable& table) {
    std::ranges::copy(table.bias, bias.data_ptr<float>());
    *other.data_ptr<float>() = table.other;
  }

  void train_step(std::span<const FusionPosition> positions) {
    const FusionBatch batch = make_batch(positions);
    const auto log_q = log_probabilities(bias, other, batch);
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
    loss.add(step_loss);
    const auto decay = static_cast<float>(
        std::min(options.average_decay, (1.0 + double(step)) / (10.0 + double(step))));
    const FusionTable now = table();
    for (std::size_t i = 0; i < now.bias.size(); ++i) {
      average.bias[i] = decay * average.bias[i] + (1 - decay) * now.bias[i];
    }
    average.other = decay * average.other + (1 - decay) * now.other;
  }

  const FusionLearnerOptions options;
  FusionTable average;
  torch::Tensor bias = torch::zeros({kFusionClasses}).set_requires_grad(true),
                other = torch::zeros({1}).set_requires_grad(true);
  const std::vector<torch::Tensor> parameters{bias, other};
  // No weight decay: a class seldom seen keeps its prior instead of sinking to zero. A second
  // moment that forgets in about 20 steps (.95) suits a stream whose domains change.
  torch::optim::AdamW optimizer{
      parameters,
      torch::optim::AdamWOptions(options.learning_rate).betas({0.9, 0.95}).weight_decay(0.0)};
  std::int64_t step = 0;
  SmoothedLoss loss;
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
double FusionLearner::loss() const { return impl_->loss.value; }

void FusionLearner::save(StateMap& map) const {
  map.put("fusion.table", flat(impl_->table()));
  map.put("fusion.average", flat(impl_->average));
  map.put_one("fusion.step", impl_->step);
  map.put_one("fusion.loss", impl_->loss.value);
  std::vector<float> first, second;  // AdamW's moments; empty before the first step
  for (const torch::Tensor& parameter : impl_->parameters) {
    const auto& states = impl_->optimizer.state();
    const auto found = states.find(parameter.unsafeGetTensorImpl());
    if (found == states.end()) break;
    const auto& adam = static_cast<const torch::optim::AdamWParamState&>(*found->second);
    const auto append = [](std::vector<float>& to, const torch::Tensor& from) {
      to.insert(to.end(), from.data_ptr<float>(), from.data_ptr<float>() + from.numel());
    };
    append(first, adam.exp_avg());
    append(second, adam.exp_avg_sq());
  }
  map.put("fusion.first_moment", first);
  map.put("fusion.second_moment", second);
}

Status FusionLearner::restore(const StateMap& map) {
  FusionTable table, average;
  if (!unflatten(map.get<float>("fusion.table"), table) ||
      !unflatten(map.get<float>("fusion.average"), average)) {
    return Error{ErrorCode::kInvalidInput,
                 "learner state: a table has the wrong shape or is not finite"};
  }
  torch::NoGradGuard no_grad;
  impl_->set_table(table);
  impl_->average = average;
  impl_->step = map.get_one<std::int64_t>("fusion.step", 0);
  impl_->loss.value = map.get_one<double>("fusion.loss", 0);
  impl_->optimizer.state().clear();
  const auto first = map.get<float>("fusion.first_moment"),
             second = map.get<float>("fusion.second_moment");
  std::size_t at = 0;
  for (const torch::Tensor& parameter : impl_->parameters) {
    const auto n = std::size_t(parameter.numel());
    if (at + n > first.size() || at + n > second.size()) break;
    const auto tensor_of = [&](const std::vector<float>& values) {
      return torch::from_blob(const_cast<float*>(values.data() + at), parameter.sizes(),
                              torch::kFloat32)
          .clone();
    };
    auto adam = std::make_unique<torch::optim::AdamWParamState>();
    adam->step(impl_->step);
    adam->exp_avg(tensor_of(first));
    adam->exp_avg_sq(tensor_of(second));
    impl_->optimizer.state()[parameter.unsafeGetTensorImpl()] = std::move(adam);
    at += n;
  }
  return Ok{};
}

}  // namespace foretoken::trainer
