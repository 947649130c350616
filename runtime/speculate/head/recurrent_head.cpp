#include "runtime/speculate/head/recurrent_head.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "foretoken/kernels/elementwise.h"
#include "foretoken/protocol/failure.h"
#include "runtime/speculate/head/head_bundle.h"
#include "runtime/speculate/head/registry.h"

namespace foretoken {
namespace {

constexpr Refusal bad_head{"head"};

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
    return bad_head("shape", "{}: neither Q8_0 nor Q4_0", name);
  const std::size_t wanted = kernels::weight_row_bytes(from.type, n_in) * std::size_t(n_out);
  if (from.rows.size() != wanted)
    return bad_head("shape", "{}: found {} bytes, wanted {}", name, from.rows.size(), wanted);
  if (!scales_finite(from)) return bad_head("non-finite", "{}", name);
  if (!to.allocate(from.type, n_out, n_in))
    return failure(ErrorCode::kOutOfRange, "memory: no room for {}", name);
  kernels::pack_rows(to.packed, 0, n_out, from.rows.data());
  return Ok{};
}

}  // namespace

class RecurrentHead::Workspace final : public HostHeadWorkspace {
 public:
  Workspace(const RecurrentHead& head, int max_rows, std::pmr::memory_resource* memory)
      : HostHeadWorkspace(head, max_rows, memory),
        head_(head),
        activations_(max_rows, std::max(kHeadTaps * head.hidden_, head.inner_)),
        ones_(std::size_t(head.hidden_), 1.0f),
        features_(std::size_t(max_rows * kHeadTaps * head.hidden_)),
        x_(features_.size()),
        h_(std::size_t(max_rows * head.hidden_)),
        z_(std::size_t(max_rows * 2 * head.hidden_)),
        branch_(h_.size()),
        gate_(std::size_t(max_rows * head.inner_)),
        up_(gate_.size()) {}
  void begin(std::span<const HeadStart> starts, kernels::ThreadPool& pool) override;
  void begin(const float* features, int n, kernels::ThreadPool& pool);
  void step(std::span<const TokenId> tokens, kernels::ThreadPool& pool) override;

 private:
  void move_row(int from, int to) override {
    std::copy_n(&h_[std::size_t(from * width_)], width_, &h_[std::size_t(to * width_)]);
  }
  const RecurrentHead& head_;
  kernels::Activations activations_;
  std::vector<float> ones_;            // [H]
  std::vector<float> features_, x_;    // [rows, 4H]
  std::vector<float> h_, z_, branch_;  // [rows, H], [rows, 2H], [rows, H]
  std::vector<float> gate_, up_;       // [rows, I]
};

Result<std::shared_ptr<const RecurrentHead>> RecurrentHead::create(
    const HeadParts& parts, std::shared_ptr<const VocabularyRows> rows) {
  if (!rows) return bad_head("shape", "the model's vocabulary is not at hand");
  const std::int64_t hidden = rows->hidden();
  const auto n_vocab = std::int64_t(parts.vocab.size());
  if (parts.hidden != hidden || hidden % 32 != 0)
    return bad_head("shape", "hidden: found {}, wanted {}, a multiple of 32", parts.hidden, hidden);
  if (parts.inner < 32 || parts.inner > kMaxHeadInner || parts.inner % 32 != 0) {
    return bad_head("shape", "inner: found {}, wanted a multiple of 32 up to {}", parts.inner,
                    kMaxHeadInner);
  }
  if (n_vocab < 16 || n_vocab > kMaxHeadVocab || n_vocab % 16 != 0) {
    return bad_head("shape", "vocab: found {} tokens, wanted a multiple of 16 up to {}", n_vocab,
                    kMaxHeadVocab);
  }
  for (std::size_t i = 0; i < parts.vocab.size(); ++i) {
    if (parts.vocab[i] < 0 || parts.vocab[i] >= rows->n_vocab() ||
        (i > 0 && parts.vocab[i] <= parts.vocab[i - 1])) {
      return bad_head("shape", "vocab: entry {} is {}, wanted ascending ids below {}", i,
                      parts.vocab[i], rows->n_vocab());
    }
  }
  if (parts.source.size() != std::size_t(kHeadSources * hidden))
    return bad_head("shape", "source: found {} values", parts.source.size());
  HeadTerms terms = parts;
  // As shares of the logits, which the gain is already in.
  for (std::size_t s = 0; s < kHeadSources; ++s)
    terms.own[s] = parts.gain != 0 ? parts.candidate_gain[s] / parts.gain : 0;
  if (!std::isfinite(parts.gain) || !std::isfinite(parts.outside) || !all_finite(parts.bias) ||
      !all_finite(parts.source) || !all_finite(terms.own)) {
    return bad_head("non-finite", "gain, outside, bias, source or candidate_gain");
  }
  const HeadTaps taps = parts.taps.value_or(head_taps(rows->n_layers()));
  for (const int tap : taps) {
    if (tap < 0 || tap > rows->n_layers())
      return bad_head("taps", "layer {} of {}", tap, rows->n_layers());
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

std::unique_ptr<HostHeadWorkspace> RecurrentHead::make_workspace(
    int max_rows, std::pmr::memory_resource* memory) const {
  return std::make_unique<Workspace>(*this, max_rows, memory);
}

void RecurrentHead::begin(const float* features, int n, HostHeadWorkspace& workspace,
                          kernels::ThreadPool& pool) {
  static_cast<Workspace&>(workspace).begin(features, n, pool);
}

void RecurrentHead::Workspace::begin(std::span<const HeadStart> starts, kernels::ThreadPool& pool) {
  float* to = features_.data();
  for (const HeadStart& start : starts) {
    start.features.decode(start.features.end - 1, kHeadTaps, to);
    to += kHeadTaps * width_;
  }
  begin(features_.data(), int(starts.size()), pool);
}

void RecurrentHead::Workspace::begin(const float* features, int n, kernels::ThreadPool& pool) {
  assert(n <= max_rows());
  const std::int64_t hidden = width_;
  n_ = n;
  kernels::rms_norm(features, hidden, ones_.data(), kHeadEpsilon, std::int64_t(n) * kHeadTaps,
                    hidden, x_.data(), hidden);
  activations_.set(x_.data(), n, kHeadTaps * hidden, kHeadTaps * hidden, true, false, pool);
  kernels::linear(head_.fc_.packed, activations_, nullptr, h_.data(), hidden, pool);
}

void RecurrentHead::Workspace::step(std::span<const TokenId> tokens, kernels::ThreadPool& pool) {
  const std::int64_t hidden = width_, inner = head_.inner_;
  const int n = n_;
  assert(int(tokens.size()) == n);
  for (int i = 0; i < n; ++i)
    head_.rows_->embedding(tokens[std::size_t(i)], &z_[std::size_t(2 * i * hidden)]);
  float* z = z_.data();
  kernels::rms_norm(z, 2 * hidden, ones_.data(), kHeadEpsilon, n, hidden, z, 2 * hidden);
  kernels::rms_norm(h_.data(), hidden, ones_.data(), kHeadEpsilon, n, hidden, z + hidden,
                    2 * hidden);
  activations_.set(z, n, 2 * hidden, 2 * hidden, true, false, pool);
  const kernels::LinearJob jobs[] = {{&head_.step_.packed, nullptr, branch_.data(), hidden},
                                     {&head_.gate_.packed, nullptr, gate_.data(), inner},
                                     {&head_.up_.packed, nullptr, up_.data(), inner}};
  kernels::linear_many(jobs, 3, activations_, pool);
  kernels::add(branch_.data(), n * hidden, h_.data());
  kernels::swiglu(gate_.data(), up_.data(), n * inner, gate_.data());
  activations_.set(gate_.data(), n, inner, inner, true, false, pool);
  kernels::linear(head_.down_.packed, activations_, nullptr, branch_.data(), hidden, pool);
  kernels::add(branch_.data(), n * hidden, h_.data());
  kernels::rms_norm(h_.data(), hidden, ones_.data(), kHeadEpsilon, n, hidden, state_.data(),
                    hidden);
  const kernels::PackedMatrix& out = head_.out_.packed;
  activations_.set(state_.data(), n, hidden, hidden, kernels::wants_block32(out.type),
                   kernels::wants_block256(out.type), pool);
  kernels::linear(out, activations_, nullptr, logits_.data(), vocab_, pool);
  for (std::int64_t i = 0; i < n * vocab_; ++i) logits_[std::size_t(i)] *= head_.gain_;
}

// The registry's way to it (head/registry.cpp).
Result<HeadPointer> recurrent_head_of(const Bundle& bundle,
                                      const std::shared_ptr<const VocabularyRows>& rows) {
  auto parts = head_parts_of(bundle);
  if (!parts) return parts.error();
  auto head = RecurrentHead::create(*parts, rows);
  if (!head) return head.error();
  return HeadPointer(std::move(*head));
}

}  // namespace foretoken
