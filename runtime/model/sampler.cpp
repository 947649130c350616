#include "runtime/model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "foretoken/kernels/sampling.h"

namespace foretoken {

bool wants_penalties(const SamplingParams& p) {
  return p.presence_penalty != 0 || p.frequency_penalty != 0 || p.repetition_penalty != 1;
}

void Sampler::prepare(float* logits, const SamplingParams& params, const TokenCounts* counts,
                      const float* maxima) {
  logits_ = logits;
  maxima_ = maxima;
  seed_ = params.seed;
  have_lse_ = false;
  const auto n = std::size_t(n_vocab_);
  for (const auto& [token, bias] : params.logit_bias) {
    if (token >= 0 && token < n_vocab_) logits[token] += bias;
  }
  if (wants_penalties(params) && counts) {
    for (std::size_t v = 0; v < n; ++v) {
      if (!counts->seen(v)) continue;
      if (params.repetition_penalty != 1) {
        logits[v] = logits[v] > 0 ? logits[v] / params.repetition_penalty
                                  : logits[v] * params.repetition_penalty;
      }
      const int count = counts->output(v);
      logits[v] -= params.frequency_penalty * float(count);
      if (count > 0) logits[v] -= params.presence_penalty;
    }
  }
  inv_temperature_ = params.temperature > 0 ? 1.0f / params.temperature : 0.0f;
  full_ = true;
  if (inv_temperature_ == 0) return;
  const bool by_k = params.top_k > 0 && params.top_k < n_vocab_;
  const bool by_p = params.top_p<1.0f, by_min = params.min_p> 0.0f;
  if (!by_k && !by_p && !by_min) return;
  full_ = false;

  // The candidates, sorted: the top k, or as many as the other filters can need, found by doubling.
  std::int64_t wanted = by_k ? params.top_k : std::min<std::int64_t>(by_p ? 256 : 1024, n_vocab_);
  for (;;) {
    ids_.resize(std::size_t(wanted));
    values_.resize(std::size_t(wanted));
    const std::int64_t found =
        kernels::top_k(logits, n_vocab_, wanted, ids_.data(), values_.data(), maxima_);
    ids_.resize(std::size_t(found));
    values_.resize(std::size_t(found));
    // So many of them top-p and min-p leave; more than there are: they may leave more. Top-p is a
    // share of the mass of the top k, else of everything.
    auto keep = std::size_t(found + 1);
    if (by_p) {
      const double total = by_k ? kernels::log_sum_exp(values_.data(), found, inv_temperature_)
                                : kernels::log_sum_exp(logits, n_vocab_, inv_temperature_);
      double mass = 0;
      for (std::size_t i = 0; i < values_.size() && mass < double(params.top_p); ++i) {
        mass += std::exp(double(values_[i] * inv_temperature_) - total);
        if (mass >= double(params.top_p)) keep = i + 1;
      }
    }
    const double best = double(values_.front() * inv_temperature_);
    for (std::size_t i = 1; by_min && i < std::min(keep, values_.size()); ++i)
      if (std::exp(double(values_[i] * inv_temperature_) - best) < double(params.min_p)) keep = i;
    if (by_k || found == n_vocab_ || keep <= values_.size()) {
      ids_.resize(std::min(keep, values_.size()));
      values_.resize(ids_.size());
      return;
    }
    wanted = std::min<std::int64_t>(wanted * 8, n_vocab_);
  }
}

TokenId Sampler::sample(std::uint64_t position) const {
  if (inv_temperature_ == 0) return kernels::argmax(logits_, n_vocab_, maxima_);
  if (full_)
    return kernels::sample_full(logits_, n_vocab_, inv_temperature_, seed_, position, maxima_);
  return kernels::sample_subset(values_.data(), ids_.data(), std::int64_t(ids_.size()),
                                inv_temperature_, seed_, position);
}

double Sampler::log_normaliser() const {
  if (!have_lse_) {
    lse_ = full_ ? kernels::log_sum_exp(logits_, n_vocab_, inv_temperature_)
                 : kernels::log_sum_exp(values_.data(), std::int64_t(values_.size()),
                                        inv_temperature_);
    have_lse_ = true;
  }
  return lse_;
}

double Sampler::logprob(TokenId token) const {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  if (inv_temperature_ == 0)
    return token == kernels::argmax(logits_, n_vocab_, maxima_) ? 0.0 : kNever;
  if (full_) return double(logits_[token] * inv_temperature_) - log_normaliser();
  const auto it = std::find(ids_.begin(), ids_.end(), token);
  if (it == ids_.end()) return kNever;
  return double(values_[std::size_t(it - ids_.begin())] * inv_temperature_) - log_normaliser();
}

bool Sampler::accepts(TokenId draft, std::span<const std::pair<TokenId, float>> support,
                      std::uint64_t position, std::uint32_t attempt) {
  if (inv_temperature_ == 0) return kernels::argmax(logits_, n_vocab_, maxima_) == draft;
  double q = support.empty() ? 1.0 : 0.0;
  for (const auto& [token, probability] : support) {
    if (token == draft) q = double(probability);
  }
  // Independent of the Gumbel noise that draws the correction.
  constexpr std::uint32_t kAcceptStream = 1;
  const double p = std::exp(logprob(draft));
  if (kernels::uniform(seed_, position, kAcceptStream + attempt) * q < p) return true;
  // The correction: from norm((p - q)+). Only the support's entries differ from p.
  const double normaliser = log_normaliser();
  auto reduce = [&](TokenId token, double probability) {
    float* value = nullptr;
    if (full_) {
      value = &logits_[token];
    } else if (const auto it = std::find(ids_.begin(), ids_.end(), token); it != ids_.end()) {
      value = &values_[std::size_t(it - ids_.begin())];
    }
    if (!value) return;
    const double left = std::exp(double(*value * inv_temperature_) - normaliser) - probability;
    *value = left > 0 ? float((std::log(left) + normaliser) / double(inv_temperature_))
                      : -std::numeric_limits<float>::infinity();
  };
  if (support.empty()) {
    reduce(draft, 1.0);
  } else {
    for (const auto& [token, probability] : support) reduce(token, double(probability));
  }
  have_lse_ = false;
  return false;
}

}  // namespace foretoken
