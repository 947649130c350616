#include "runtime/speculate/head/recurrent_head.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "foretoken/kernels/elementwise.h"
#include "foretoken/kernels/sampling.h"

namespace foretoken {
namespace {

Error refusal(const char* reason, std::string text) {
  return Error{ErrorCode::kInvalidInput, fmt::format("{}: head: {}", reason, text)};
}

bool all_finite(std::span<const float> values) {
  return std::ranges::all_of(values, [](float v) { return std::isfinite(v); });
}

// Every block's fp16 scale must be finite: an int8 code always is.
bool scales_finite(const HeadMatrix& m) {
  const std::size_t block = kernels::weight_row_bytes(m.type, 32);
  for (std::size_t at = 0; at + block <= m.rows.size(); at += block) {
    std::uint16_t d;
    std::memcpy(&d, m.rows.data() + at, 2);
    if ((d & 0x7c00u) == 0x7c00u) return false;
  }
  return true;
}

Status pack(const char* name, const HeadMatrix& from, std::int64_t n_out, std::int64_t n_in,
            Matrix& to) {
  if (from.type != kernels::WeightType::kQ8_0 && from.type != kernels::WeightType::kQ4_0)
    return refusal("shape", fmt::format("{}: neither Q8_0 nor Q4_0", name));
  const std::size_t wanted = kernels::weight_row_bytes(from.type, n_in) * std::size_t(n_out);
  if (from.rows.size() != wanted) {
    return refusal("shape",
                   fmt::format("{}: found {} bytes, wanted {}", name, from.rows.size(), wanted));
  }
  if (!scales_finite(from)) return refusal("non-finite", name);
  const std::size_t bytes = kernels::packed_bytes(from.type, n_out, n_in);
  to.buffer = WeightBuffer(bytes);
  if (!to.buffer.data())
    return Error{ErrorCode::kOutOfRange, fmt::format("memory: no room for {}", name)};
  to.packed = {from.type, kernels::Device::kCpu, n_out, n_in, to.buffer.data(), bytes};
  to.file_bytes = wanted;
  kernels::pack_rows(to.packed, 0, n_out, from.rows.data());
  return Ok{};
}

}  // namespace

Result<std::shared_ptr<const RecurrentHead>> RecurrentHead::create(
    const HeadParts& parts, std::shared_ptr<const VocabularyRows> rows) {
  if (!rows) return refusal("shape", "the model's vocabulary is not at hand");
  const std::int64_t hidden = rows->hidden();
  const auto n_vocab = std::int64_t(parts.vocab.size());
  if (parts.hidden != hidden || hidden % 32 != 0) {
    return refusal("shape", fmt::format("hidden: found {}, wanted {}, a multiple of 32",
                                        parts.hidden, hidden));
  }
  if (parts.inner < 32 || parts.inner > kMaxHeadInner || parts.inner % 32 != 0) {
    return refusal("shape", fmt::format("inner: found {}, wanted a multiple of 32 up to {}",
                                        parts.inner, kMaxHeadInner));
  }
  if (n_vocab < 16 || n_vocab > kMaxHeadVocab || n_vocab % 16 != 0) {
    return refusal("shape", fmt::format("vocab: found {} tokens, wanted a multiple of 16 up to {}",
                                        n_vocab, kMaxHeadVocab));
  }
  for (std::size_t i = 0; i < parts.vocab.size(); ++i) {
    if (parts.vocab[i] < 0 || parts.vocab[i] >= rows->n_vocab() ||
        (i > 0 && parts.vocab[i] <= parts.vocab[i - 1])) {
      return refusal("shape", fmt::format("vocab: entry {} is {}, wanted ascending ids below {}", i,
                                          parts.vocab[i], rows->n_vocab()));
    }
  }
  if (parts.source.size() != std::size_t(kHeadSources * hidden))
    return refusal("shape", fmt::format("source: found {} values", parts.source.size()));
  if (!std::isfinite(parts.gain) || !std::isfinite(parts.outside) || !all_finite(parts.bias) ||
      !all_finite(parts.source)) {
    return refusal("non-finite", "gain, outside, bias or source");
  }
  std::shared_ptr<RecurrentHead> head(new RecurrentHead);
  head->hidden_ = hidden;
  head->inner_ = parts.inner;
  struct Part {
    const char* name;
    const HeadMatrix& from;
    std::int64_t n_out, n_in;
    Matrix& to;
  };
  for (const Part& p : {Part{"fc", parts.fc, hidden, kHeadTaps * hidden, head->fc_},
                        Part{"step", parts.step, hidden, 2 * hidden, head->step_},
                        Part{"gate", parts.gate, parts.inner, 2 * hidden, head->gate_},
                        Part{"up", parts.up, parts.inner, 2 * hidden, head->up_},
                        Part{"down", parts.down, hidden, parts.inner, head->down_}}) {
    if (auto s = pack(p.name, p.from, p.n_out, p.n_in, p.to); !s) return s.error();
  }
  auto out = rows->pack_output_rows(parts.vocab);
  if (!out) return out.error();
  head->out_ = std::move(*out);
  for (const Matrix* m : {&head->step_, &head->gate_, &head->up_, &head->down_, &head->out_})
    head->step_bytes_ += m->file_bytes;
  head->vocab_ = parts.vocab;
  head->gain_ = parts.gain;
  head->outside_ = parts.outside;
  head->bias_ = parts.bias;
  head->source_ = parts.source;
  head->rows_ = std::move(rows);
  return std::shared_ptr<const RecurrentHead>(std::move(head));
}

int RecurrentHead::slot_of(TokenId token) const {
  const auto at = std::ranges::lower_bound(vocab_, token);
  return at != vocab_.end() && *at == token ? int(at - vocab_.begin()) : -1;
}

void RecurrentHead::begin(const float* features, int n, HeadWorkspace& ws,
                          kernels::ThreadPool& pool) const {
  assert(n <= ws.max_rows_ && hidden_ == ws.hidden_ && inner_ <= ws.max_inner_ &&
         std::int64_t(vocab_.size()) <= ws.max_vocab_);
  ws.n_ = n;
  ws.vocab_ = std::int64_t(vocab_.size());
  kernels::rms_norm(features, hidden_, ws.ones_.data(), kHeadEpsilon, std::int64_t(n) * kHeadTaps,
                    hidden_, ws.x_.data(), hidden_);
  ws.activations_.set(ws.x_.data(), n, kHeadTaps * hidden_, kHeadTaps * hidden_, true, false, pool);
  kernels::linear(fc_.packed, ws.activations_, nullptr, ws.h_.data(), hidden_, pool);
}

void RecurrentHead::step(std::span<const TokenId> tokens, HeadWorkspace& ws,
                         kernels::ThreadPool& pool) const {
  const int n = ws.n_;
  assert(int(tokens.size()) == n);
  for (int i = 0; i < n; ++i)
    rows_->embedding(tokens[std::size_t(i)], &ws.z_[std::size_t(2 * i * hidden_)]);
  float* z = ws.z_.data();
  kernels::rms_norm(z, 2 * hidden_, ws.ones_.data(), kHeadEpsilon, n, hidden_, z, 2 * hidden_);
  kernels::rms_norm(ws.h_.data(), hidden_, ws.ones_.data(), kHeadEpsilon, n, hidden_, z + hidden_,
                    2 * hidden_);
  ws.activations_.set(z, n, 2 * hidden_, 2 * hidden_, true, false, pool);
  const kernels::LinearJob jobs[] = {{&step_.packed, nullptr, ws.branch_.data(), hidden_},
                                     {&gate_.packed, nullptr, ws.gate_.data(), inner_},
                                     {&up_.packed, nullptr, ws.up_.data(), inner_}};
  kernels::linear_many(jobs, 3, ws.activations_, pool);
  kernels::add(ws.branch_.data(), n * hidden_, ws.h_.data());
  kernels::swiglu(ws.gate_.data(), ws.up_.data(), n * inner_, ws.gate_.data());
  ws.activations_.set(ws.gate_.data(), n, inner_, inner_, true, false, pool);
  kernels::linear(down_.packed, ws.activations_, nullptr, ws.branch_.data(), hidden_, pool);
  kernels::add(ws.branch_.data(), n * hidden_, ws.h_.data());
  kernels::rms_norm(ws.h_.data(), hidden_, ws.ones_.data(), kHeadEpsilon, n, hidden_, ws.r_.data(),
                    hidden_);
  ws.activations_.set(ws.r_.data(), n, hidden_, hidden_, kernels::wants_block32(out_.packed.type),
                      kernels::wants_block256(out_.packed.type), pool);
  const auto n_vocab = std::int64_t(vocab_.size());
  kernels::linear(out_.packed, ws.activations_, nullptr, ws.logits_.data(), n_vocab, pool);
  for (std::int64_t i = 0; i < n * n_vocab; ++i) ws.logits_[std::size_t(i)] *= gain_;
}

Proposal RecurrentHead::choose(int row, const CandidateList& candidates,
                               const SamplingParams& sampling, std::int64_t position, bool coupled,
                               HeadWorkspace& ws) const {
  return choose(&ws.logits_[std::size_t(row) * vocab_.size()], ws.state(row), candidates, sampling,
                position, coupled);
}

Proposal RecurrentHead::choose(float* logits, const float* r, const CandidateList& candidates,
                               const SamplingParams& sampling, std::int64_t position,
                               bool coupled) const {
  const auto n_vocab = std::int64_t(vocab_.size());
  // Tokens the vocabulary lacks: a slot each.
  std::array<TokenId, kMaxCandidates> extra_ids;
  std::array<float, kMaxCandidates> extra_logits;
  std::size_t n_extra = 0;
  std::array<float, kHeadSources> source_terms;
  std::array<bool, kHeadSources> known{};
  for (const Candidate& candidate : candidates.view()) {
    const auto s = std::size_t(head_source(candidate.klass));
    if (!known[s]) {
      const float* weights = &source_[s * std::size_t(hidden_)];
      double sum = 0;
      for (std::int64_t i = 0; i < hidden_; ++i) sum += double(weights[i]) * double(r[i]);
      source_terms[s] = float(sum);
      known[s] = true;
    }
    const float bonus = bias_[candidate.klass] + source_terms[s];
    if (const int slot = slot_of(candidate.token); slot >= 0) {
      logits[slot] += bonus;
      continue;
    }
    std::size_t e = 0;
    while (e < n_extra && extra_ids[e] != candidate.token) ++e;
    if (e == n_extra) {
      extra_ids[n_extra] = candidate.token;
      extra_logits[n_extra++] = outside_;
    }
    extra_logits[e] += bonus;
  }
  for (const auto& [token, bias] : sampling.logit_bias) {
    if (const int slot = slot_of(token); slot >= 0) logits[slot] += bias;
    for (std::size_t e = 0; e < n_extra; ++e) {
      if (extra_ids[e] == token) extra_logits[e] += bias;
    }
  }

  const bool noisy = coupled && sampling.temperature > 0;
  const float inv_temperature = sampling.temperature > 0 ? 1.0f / sampling.temperature : 1.0f;
  const auto score = [&](float logit, TokenId token) {
    if (!noisy) return double(logit);
    return double(logit * inv_temperature) +
           kernels::gumbel(sampling.seed, std::uint64_t(position), std::uint32_t(token));
  };
  Proposal proposal;
  proposal.token =
      kernels::sample_subset(logits, vocab_.data(), n_vocab, noisy ? inv_temperature : 0.0f,
                             sampling.seed, std::uint64_t(position));
  float chosen = logits[slot_of(proposal.token)];
  double best = score(chosen, proposal.token);
  for (std::size_t e = 0; e < n_extra; ++e) {
    const double value = score(extra_logits[e], extra_ids[e]);
    if (value > best || (value == best && extra_ids[e] < proposal.token)) {
      best = value;
      chosen = extra_logits[e];
      proposal.token = extra_ids[e];
    }
  }
  double normaliser = kernels::log_sum_exp(logits, n_vocab, inv_temperature);
  for (std::size_t e = 0; e < n_extra; ++e) {
    const double x = double(extra_logits[e] * inv_temperature);
    const double top = std::max(x, normaliser);
    normaliser = top + std::log(std::exp(x - top) + std::exp(normaliser - top));
  }
  proposal.raw = float(std::min(1.0, std::exp(double(chosen * inv_temperature) - normaliser)));
  return proposal;
}

void RecurrentHead::logits(const float* features, std::span<const TokenId> tokens,
                           kernels::ThreadPool& pool, float* out, float* states) const {
  HeadWorkspace ws(1, hidden_, inner_, std::int64_t(vocab_.size()));
  begin(features, 1, ws, pool);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    step(tokens.subspan(i, 1), ws, pool);
    std::copy_n(ws.logits(0), vocab_.size(), out + i * vocab_.size());
    if (states) std::copy_n(ws.state(0), hidden_, states + i * std::size_t(hidden_));
  }
}

HeadWorkspace::HeadWorkspace(int max_rows, std::int64_t hidden, std::int64_t max_inner,
                             std::int64_t max_vocab)
    : hidden_(hidden),
      max_inner_(max_inner),
      max_vocab_(max_vocab),
      max_rows_(max_rows),
      activations_(max_rows, std::max(kHeadTaps * hidden, max_inner)),
      ones_(std::size_t(hidden), 1.0f),
      x_(std::size_t(max_rows * kHeadTaps * hidden)),
      h_(std::size_t(max_rows * hidden)),
      z_(std::size_t(max_rows * 2 * hidden)),
      branch_(std::size_t(max_rows * hidden)),
      gate_(std::size_t(max_rows * max_inner)),
      up_(std::size_t(max_rows * max_inner)),
      r_(std::size_t(max_rows * hidden)),
      logits_(std::size_t(max_rows * max_vocab)) {}

void HeadWorkspace::keep(std::span<const int> rows) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    assert(rows[i] >= int(i) && rows[i] < n_);
    if (rows[i] == int(i)) continue;
    std::copy_n(&h_[std::size_t(rows[i] * hidden_)], hidden_, &h_[i * std::size_t(hidden_)]);
  }
  n_ = int(rows.size());
}

}  // namespace foretoken
