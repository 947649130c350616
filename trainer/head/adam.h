// The optimiser of the heads, and tensors in a learner's state. One of the few headers that name
// torch.
#pragma once

#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "trainer/head/torch_headers.h"
#include "trainer/learner/state_map.h"

namespace foretoken::trainer {

// As name.0, name.1, ...
inline void put(StateMap& map, const std::string& name, const std::vector<torch::Tensor>& tensors) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto t = tensors[i].contiguous();
    map.put(name + "." + std::to_string(i),
            std::span<const float>(t.data_ptr<float>(), std::size_t(t.numel())));
  }
}

// False: one is missing, of another size, or not finite.
inline bool get(const StateMap& map, const std::string& name,
                const std::vector<torch::Tensor>& tensors) {
  torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto values = map.get<float>(name + "." + std::to_string(i));
    if (std::int64_t(values.size()) != tensors[i].numel()) return false;
    for (const float v : values) {
      if (!std::isfinite(v)) return false;
    }
    tensors[i].detach().copy_(
        torch::from_blob(const_cast<float*>(values.data()), tensors[i].sizes(), torch::kFloat32));
  }
  return true;
}

// AdamW without decay over some parameters, in one pass over memory a step.
class Adam {
 public:
  explicit Adam(std::vector<torch::Tensor> parameters) : parameters_(std::move(parameters)) {
    for (const torch::Tensor& p : parameters_) {
      first_.push_back(torch::zeros_like(p));
      second_.push_back(torch::zeros_like(p));
      steps_.push_back(torch::zeros({}));
    }
  }
  void step(double learning_rate) {
    torch::NoGradGuard no_grad;
    std::vector<torch::Tensor> gradients;
    for (const torch::Tensor& p : parameters_) gradients.push_back(p.grad());
    for (torch::Tensor& s : steps_) s.add_(1);
    auto parameters = values();
    at::_fused_adamw_(parameters, gradients, first_, second_, {}, steps_, learning_rate, 0.9, 0.95,
                      0.0, 1e-8, false, false);
  }
  // Detached, sharing memory: an optimiser writes into leaves.
  std::vector<torch::Tensor> values() const {
    std::vector<torch::Tensor> out;
    for (const torch::Tensor& p : parameters_) out.push_back(p.detach());
    return out;
  }
  // Its moments and counts, under names that begin so.
  void save(StateMap& map, const std::string& prefix) const {
    put(map, prefix + "first", first_);
    put(map, prefix + "second", second_);
    put(map, prefix + "steps", steps_);
  }
  bool restore(const StateMap& map, const std::string& prefix) {
    return get(map, prefix + "first", first_) && get(map, prefix + "second", second_) &&
           get(map, prefix + "steps", steps_);
  }

 private:
  std::vector<torch::Tensor> parameters_, first_, second_, steps_;
};

// To the parameter's gradient, from nothing where it has none.
inline void add_gradient(const torch::Tensor& parameter, const torch::Tensor& value) {
  if (!parameter.grad().defined()) parameter.mutable_grad() = torch::zeros_like(parameter);
  parameter.mutable_grad().add_(value);
}

// Sums of gradients times `scale`, cut back to a norm of `clip`. False: they are not finite.
inline bool scale_and_clip(const std::vector<torch::Tensor>& gradients, double scale, double clip) {
  torch::NoGradGuard no_grad;
  double squares = 0;
  for (const torch::Tensor& norm : at::_foreach_norm(gradients)) {
    const double value = norm.item<double>() * scale;
    squares += value * value;
  }
  const double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) return false;
  at::_foreach_mul_(gradients, scale * std::min(1.0, clip / std::max(norm, 1e-12)));
  return true;
}

// The average that is served; of few steps it forgets faster.
inline void move_average(std::vector<torch::Tensor> average, const std::vector<torch::Tensor>& now,
                         double decay, std::int64_t step) {
  torch::NoGradGuard no_grad;
  at::_foreach_lerp_(average, now,
                     1 - std::min(decay, (1.0 + double(step)) / (10.0 + double(step))));
}

}  // namespace foretoken::trainer
