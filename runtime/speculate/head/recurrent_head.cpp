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

class RecurrentWorkspace final : public HeadWorkspace {
 public:
  RecurrentWorkspace(int max_rows, std::int64_t hidden, std::int64_t inner, std::int64_t vocab)
      : HeadWorkspace(max_rows, hidden, vocab),
        inner_(inner),
        activations_(max_rows, std::max(kHeadTaps * hidden, inner)),
        ones_(std::size_t(hidden), 1.0f),
        features_(std::size_t(max_rows * kHeadTaps * hidden)),
        x_(features_.size()),
        h_(std::size_t(max_rows * hidden)),
        z_(std::size_t(max_rows * 2 * hidden)),
        branch_(std::size_t(max_rows * hidden)),
        gate_(std::size_t(max_rows * inner)),
        up_(std::size_t(max_rows * inner)) {}
  bool fits(std::int64_t hidden, std::int64_t inner, std::int64_t vocab) const {
    return width_ == hidden && inner_ == inner && vocab_ == vocab;
  }
  using HeadWorkspace::n_, HeadWorkspace::logits_, HeadWorkspace::state_;

  const std::int64_t inner_;
  kernels::Activations activations_;
  std::vector<float> ones_;            // [H]
  std::vector<float> features_, x_;    // [rows, 4H]
  std::vector<float> h_, z_, branch_;  // [rows, H], [rows, 2H], [rows, H]
  std::vector<float> gate_, up_;       // [rows, I]

 private:
  void move_row(int from, int to) override {
    std::copy_n(&h_[std::size_t(from * width_)], width_, &h_[std::size_t(to * width_)]);
  }
};

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
  HeadTerms terms{parts.outside, parts.bias, parts.source, {}};
  // As shares of the logits, which the gain is already in.
  for (std::size_t s = 0; s < kHeadSources; ++s)
    terms.own[s] = parts.gain != 0 ? parts.candidate_gain[s] / parts.gain : 0;
  if (!std::isfinite(parts.gain) || !std::isfinite(parts.outside) || !all_finite(parts.bias) ||
      !all_finite(parts.source) || !all_finite(terms.own)) {
    return refusal("non-finite", "gain, outside, bias, source or candidate_gain");
  }
  const HeadTaps taps = parts.taps.value_or(head_taps(rows->n_layers()));
  for (const int tap : taps) {
    if (tap < 0 || tap > rows->n_layers())
      return refusal("taps", fmt::format("layer {} of {}", tap, rows->n_layers()));
  }
  std::shared_ptr<RecurrentHead> head(new RecurrentHead);
  head->taps_ = taps;
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
  head->terms_ = std::move(terms);
  head->rows_ = std::move(rows);
  return std::shared_ptr<const RecurrentHead>(std::move(head));
}

std::unique_ptr<HeadWorkspace> RecurrentHead::make_workspace(int max_rows) const {
  return std::make_unique<RecurrentWorkspace>(max_rows, hidden_, inner_,
                                              std::int64_t(vocab_.size()));
}

void RecurrentHead::begin(std::span<const HeadStart> starts, HeadWorkspace& workspace,
                          kernels::ThreadPool& pool) const {
  auto& ws = static_cast<RecurrentWorkspace&>(workspace);
  float* to = ws.features_.data();
  for (const HeadStart& start : starts) {
    start.features.decode(start.features.end - 1, kHeadTaps, to);
    to += kHeadTaps * hidden_;
  }
  begin(ws.features_.data(), int(starts.size()), ws, pool);
}

void RecurrentHead::begin(const float* features, int n, HeadWorkspace& workspace,
                          kernels::ThreadPool& pool) const {
  auto& ws = static_cast<RecurrentWorkspace&>(workspace);
  assert(n <= ws.max_rows() && ws.fits(hidden_, inner_, std::int64_t(vocab_.size())));
  ws.n_ = n;
  kernels::rms_norm(features, hidden_, ws.ones_.data(), kHeadEpsilon, std::int64_t(n) * kHeadTaps,
                    hidden_, ws.x_.data(), hidden_);
  ws.activations_.set(ws.x_.data(), n, kHeadTaps * hidden_, kHeadTaps * hidden_, true, false, pool);
  kernels::linear(fc_.packed, ws.activations_, nullptr, ws.h_.data(), hidden_, pool);
}

void RecurrentHead::step(std::span<const TokenId> tokens, HeadWorkspace& workspace,
                         kernels::ThreadPool& pool) const {
  auto& ws = static_cast<RecurrentWorkspace&>(workspace);
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
  kernels::rms_norm(ws.h_.data(), hidden_, ws.ones_.data(), kHeadEpsilon, n, hidden_,
                    ws.state_.data(), hidden_);
  ws.activations_.set(ws.state_.data(), n, hidden_, hidden_,
                      kernels::wants_block32(out_.packed.type),
                      kernels::wants_block256(out_.packed.type), pool);
  const auto n_vocab = std::int64_t(vocab_.size());
  kernels::linear(out_.packed, ws.activations_, nullptr, ws.logits_.data(), n_vocab, pool);
  for (std::int64_t i = 0; i < n * n_vocab; ++i) ws.logits_[std::size_t(i)] *= gain_;
}

void RecurrentHead::logits(const float* features, std::span<const TokenId> tokens,
                           kernels::ThreadPool& pool, float* out, float* states) const {
  RecurrentWorkspace ws(1, hidden_, inner_, std::int64_t(vocab_.size()));
  begin(features, 1, ws, pool);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    step(tokens.subspan(i, 1), ws, pool);
    std::copy_n(ws.logits(0), vocab_.size(), out + i * vocab_.size());
    if (states) std::copy_n(ws.state(0), hidden_, states + i * std::size_t(hidden_));
  }
}

}  // namespace foretoken
