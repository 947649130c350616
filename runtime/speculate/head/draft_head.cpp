#include "runtime/speculate/head/draft_head.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cmath>

#include "foretoken/kernels/sampling.h"

namespace foretoken {

HostHeadWorkspace::HostHeadWorkspace(const DraftHead& head, int max_rows,
                                     std::pmr::memory_resource* memory)
    : HeadWorkspace(max_rows),
      of_(head),
      width_(head.state_width()),
      vocab_(std::ssize(head.vocab())),
      state_(std::size_t(max_rows * width_), memory),
      logits_(std::size_t(max_rows * vocab_), memory) {}

void HostHeadWorkspace::reserve(HeadMemory& memory) {
  const std::size_t n = of_.memory_floats();
  if (memory.n_values >= n) return;
  memory.forget();
  std::pmr::polymorphic_allocator<float> allocator = state_.get_allocator();
  memory.values = {allocator.allocate(n),
                   [allocator, n](float* values) mutable { allocator.deallocate(values, n); }};
  std::fill_n(memory.values.get(), n, 0.0f);
  memory.n_values = n;
}

Proposal HostHeadWorkspace::choose(int row, const CandidateList& candidates,
                                   const SamplingParams& sampling, std::int64_t position,
                                   bool coupled) {
  return of_.choose(&logits_[std::size_t(row) * std::size_t(vocab_)], state(row), candidates,
                    sampling, position, coupled);
}

void HostHeadWorkspace::keep(std::span<const int> rows) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    assert(rows[i] >= int(i) && rows[i] < n_);
    if (rows[i] != int(i)) move_row(rows[i], int(i));
  }
  n_ = int(rows.size());
}

// Far below any logit, and finite: no comparison or sum meets an infinity.
HeadTerms HeadTerms::none(std::int64_t width) {
  HeadTerms terms;
  terms.outside = -1e30f;
  terms.source.assign(std::size_t(kHeadSources * width), 0.0f);
  return terms;
}

DraftHead::DraftHead()
    : id_([] {
        static std::atomic<std::uint64_t> next{0};
        return ++next;
      }()) {}

bool DraftHead::reads(std::span<const std::int32_t> tap_layers) const {
  if (tap_layers.empty()) return taps_ == head_taps(rows_->n_layers());
  return std::ranges::equal(tap_layers, taps_);
}

int DraftHead::slot_of(TokenId token) const {
  const auto at = std::ranges::lower_bound(vocab_, token);
  return at != vocab_.end() && *at == token ? int(at - vocab_.begin()) : -1;
}

std::unique_ptr<HeadWorkspace> DraftHead::make_host_workspace(
    int max_rows, std::pmr::memory_resource* memory) const {
  return make_workspace(max_rows, memory);
}

Proposal DraftHead::choose(float* logits, const float* r, const CandidateList& candidates,
                           const SamplingParams& sampling, std::int64_t position,
                           bool coupled) const {
  const auto n_vocab = std::int64_t(vocab_.size());
  const std::int64_t width = state_width();
  // Tokens the vocabulary lacks: a slot each.
  TokenScores extra;
  std::array<float, kHeadSources> source_terms;
  std::array<bool, kHeadSources> known{};
  struct Raised {
    int slot;
    float by;
  };
  BoundedVector<Raised, kMaxCandidates> raised;
  for (const Candidate& candidate : candidates) {
    const auto s = std::size_t(head_source(candidate.fusion_class));
    if (!known[s]) {
      const float* weights = &terms_.source[s * std::size_t(width)];
      double sum = 0;
      for (std::int64_t i = 0; i < width; ++i) sum += double(weights[i]) * double(r[i]);
      source_terms[s] = float(sum);
      known[s] = true;
    }
    const float bonus = terms_.bias[candidate.fusion_class] + source_terms[s];
    if (const int slot = slot_of(candidate.token); slot >= 0) {
      raised.push_back({slot, bonus + terms_.own[s] * logits[slot]});
    } else {
      extra.of(candidate.token, terms_.outside) += bonus;
    }
  }
  // Only now: a token may come from several sources, each adds to what the head alone says.
  for (const Raised& token : raised) logits[token.slot] += token.by;
  for (const auto& [token, bias] : sampling.logit_bias) {
    if (const int slot = slot_of(token); slot >= 0) logits[slot] += bias;
    extra.add_bias(token, bias);
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
  for (const auto& [token, logit] : extra) {
    const double value = score(logit, token);
    if (value > best || (value == best && token < proposal.token)) {
      best = value;
      chosen = logit;
      proposal.token = token;
    }
  }
  double normaliser = kernels::log_sum_exp(logits, n_vocab, inv_temperature);
  for (const TokenScore& e : extra) {
    const double x = double(e.score * inv_temperature);
    const double top = std::max(x, normaliser);
    normaliser = top + std::log(std::exp(x - top) + std::exp(normaliser - top));
  }
  proposal.raw = float(std::min(1.0, std::exp(double(chosen * inv_temperature) - normaliser)));
  return proposal;
}

}  // namespace foretoken
