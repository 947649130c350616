// What every learned head is: weights and shapes, immutable and shared. A HeadWorkspace runs it: it
// starts from the hidden states of a sequence, reads one token a step, and after each step proposes
// the token after it. Two architectures:
//   RecurrentHead  reads the last position's features alone
//   Eagle3Head     a transformer layer over a window of positions, its keys and values in a
//                  HeadMemory, which can be rebuilt from the features at any time
// Draft vocabulary, n-gram candidates and the choice are the same for both and live here: every
// candidate c adds bias[class] + source[s] . state + own[s] * (the head's logit of its token) to
// its token's logit, s = 0 for the own context, 1, 2, 3 for traffic of order 2, 3, 4; one outside
// the vocabulary starts from the logit `outside`. Workspaces and memories are of one thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <vector>

#include "runtime/model/feature_rows.h"
#include "runtime/model/head_workspace.h"
#include "runtime/model/vocabulary_rows.h"
#include "runtime/speculate/candidates.h"
#include "runtime/speculate/proposal.h"

namespace foretoken {

inline constexpr int kHeadSources = 4;
constexpr int head_source(std::uint8_t fusion_class) {
  return fusion_class < kOwnClasses
             ? 0
             : 1 + (fusion_class - kOwnClasses) / (kProbabilityBuckets * kCountBuckets);
}

// How n-gram candidates enter a head's logits. Those of a head that was trained without them are
// all zero, and a token that it cannot say stays unsaid.
struct HeadTerms {
  float outside = 0;
  std::array<float, kFusionClasses> bias{};
  std::vector<float> source;  // [kHeadSources, state width]
  // By source: so many times the token's own logit is added to it.
  std::array<float, kHeadSources> own{};
  static HeadTerms none(std::int64_t width);
};

class HostHeadWorkspace;

class DraftHead : public HeadWeights {
 public:
  DraftHead(const DraftHead&) = delete;
  DraftHead& operator=(const DraftHead&) = delete;

  std::uint64_t id() const { return id_; }                   // no two heads of a process share one
  std::int64_t hidden() const { return rows_->hidden(); }    // of the target: a tap's width
  std::span<const TokenId> vocab() const { return vocab_; }  // ascending
  std::int64_t n_vocab() const { return rows_->n_vocab(); }  // of the target
  const HeadTaps& taps() const { return taps_; }
  // Whether these are its layers, as a trace names them (none: the default ones).
  bool reads(std::span<const std::int32_t> tap_layers) const;
  std::size_t step_bytes() const { return step_bytes_; }  // read by a step, of one row or many
  virtual const char* kind() const = 0;                   // as its bundle's: "head", "eagle3"
  virtual std::int64_t window() const = 0;  // positions of features that begin() reads
  virtual std::size_t memory_floats() const { return 0; }  // of HeadMemory::values
  // How it runs on the host.
  virtual std::unique_ptr<HostHeadWorkspace> make_workspace(
      int max_rows, std::pmr::memory_resource* memory = std::pmr::get_default_resource()) const = 0;
  std::unique_ptr<HeadWorkspace> make_host_workspace(int max_rows,
                                                     std::pmr::memory_resource* memory) const final;

  // HeadWorkspace::choose() of one row's logits [V], which change, and its state [state width].
  Proposal choose(float* logits, const float* state, const CandidateList& candidates,
                  const SamplingParams& sampling, std::int64_t position, bool coupled) const;
  std::int64_t state_width() const { return std::int64_t(terms_.source.size()) / kHeadSources; }

 protected:
  DraftHead();
  int slot_of(TokenId token) const;  // -1: outside

  std::shared_ptr<const VocabularyRows> rows_;
  HeadTaps taps_{};
  std::size_t step_bytes_ = 0;
  std::vector<TokenId> vocab_;
  HeadTerms terms_;

 private:
  const std::uint64_t id_;
};

class HostHeadWorkspace : public HeadWorkspace {
 public:
  void reserve(HeadMemory& memory) override;
  Proposal choose(int row, const CandidateList& candidates, const SamplingParams& sampling,
                  std::int64_t position, bool coupled) override;
  void keep(std::span<const int> rows) override;
  // After a step, [V] and [state width].
  const float* logits(int row) const { return &logits_[std::size_t(row) * std::size_t(vocab_)]; }
  const float* state(int row) const { return &state_[std::size_t(row) * std::size_t(width_)]; }

 protected:
  HostHeadWorkspace(const DraftHead& head, int max_rows, std::pmr::memory_resource* memory);
  virtual void move_row(int from, int to) = 0;  // what the next step reads of a row

  const DraftHead& of_;
  const std::int64_t width_, vocab_;
  std::pmr::vector<float> state_;   // [rows, width]
  std::pmr::vector<float> logits_;  // [rows, V]
};

}  // namespace foretoken
