// What every learned head is to those who run it (the engine's HeadSpeculator, replay, the tap
// check): it starts from the hidden states of a sequence, reads one token a step, and after each
// step proposes the token after it. Two architectures:
//   RecurrentHead  reads the last position's features alone
//   Eagle3Head     a transformer layer over a window of positions, its keys and values in a
//                  HeadMemory, which can be rebuilt from the features at any time
// Draft vocabulary, n-gram candidates and the choice are the same for both and live here:
// every candidate c adds bias[class] + source[s] . state + own[s] * (the head's logit of its token)
// to its token's logit, s = 0 for the own context, 1, 2, 3 for traffic of order 2, 3, 4; a
// candidate outside the vocabulary starts from the logit `outside` and has no own. Heads are
// immutable and shared; workspaces and memories are of one thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "foretoken/kernels/thread_pool.h"
#include "runtime/model/vocabulary_rows.h"
#include "runtime/speculate/candidates.h"
#include "runtime/speculate/proposal.h"

namespace foretoken {

inline constexpr int kHeadTaps = 4;
inline constexpr int kHeadSources = 4;
// The furthest back that any head looks: as many positions of a prompt's end are logged
// (kTracedPrompt), so that a replay sees what the live head saw.
inline constexpr std::int64_t kHeadWindow = kTracedPrompt;

using HeadTaps = std::array<int, kHeadTaps>;

// The layers whose outputs are the features, low to high; n_layers is the final normalised state.
constexpr HeadTaps head_taps(int n_layers) {
  const int low = n_layers - 1 < 2 ? n_layers - 1 : 2;
  const int high = n_layers - 3 > 0 ? n_layers - 3 : 0;
  return {low, n_layers / 2, high, n_layers};
}

constexpr int head_source(std::uint8_t klass) {
  return klass < kOwnClasses ? 0
                             : 1 + (klass - kOwnClasses) / (kProbabilityBuckets * kCountBuckets);
}

// A sequence's features as they are logged, positions [first, end): of a ring, or of a trace.
struct FeatureView {
  const std::uint16_t* values = nullptr;  // [capacity, kHeadTaps, hidden] fp16
  const float* scales = nullptr;          // [capacity, kHeadTaps]
  std::int64_t hidden = 0;
  std::int64_t first = 0, end = 0;
  std::int64_t base = 0, capacity = 1;  // position p is row (p - base) mod capacity

  std::int64_t row(std::int64_t position) const { return (position - base) % capacity; }
  // out: [n_taps, hidden], the first n_taps of that position.
  void decode(std::int64_t position, int n_taps, float* out) const;
};

// What a windowed head keeps of one sequence between rounds: keys and values of positions
// [first, end), of the head that wrote them. Grown by reserve() alone.
struct HeadMemory {
  std::uint64_t head = 0;  // its id(); 0: nothing is kept
  std::int64_t first = 0, end = 0;
  std::vector<float> values;
  void forget() { head = 0; }
};

// One row of a round: a sequence whose newest token has no KV yet, and whose features end with the
// position before it (features.end == tokens.size() - 1).
struct HeadStart {
  std::span<const TokenId> tokens;
  FeatureView features;
  HeadMemory* memory = nullptr;  // of a size that the head's memory_floats() wants; null if 0
};

// The buffers of a batch of drafts. Made by the head that uses it.
class HeadWorkspace {
 public:
  virtual ~HeadWorkspace() = default;
  HeadWorkspace(const HeadWorkspace&) = delete;
  HeadWorkspace& operator=(const HeadWorkspace&) = delete;
  int rows() const { return n_; }
  int max_rows() const { return max_rows_; }
  // Keeps the rows listed (ascending), in that order: row i is then what rows[i] was. Between two
  // steps.
  void keep(std::span<const int> rows);
  // After a step, [V] and [state width].
  const float* logits(int row) const { return &logits_[std::size_t(row) * std::size_t(vocab_)]; }
  const float* state(int row) const { return &state_[std::size_t(row) * std::size_t(width_)]; }

 protected:
  HeadWorkspace(int max_rows, std::int64_t width, std::int64_t vocab)
      : width_(width),
        vocab_(vocab),
        max_rows_(max_rows),
        state_(std::size_t(max_rows * width)),
        logits_(std::size_t(max_rows * vocab)) {}
  virtual void move_row(int from, int to) = 0;  // what the next step reads of a row

  friend class DraftHead;
  const std::int64_t width_, vocab_;
  const int max_rows_;
  int n_ = 0;
  std::vector<float> state_;   // [rows, width]
  std::vector<float> logits_;  // [rows, V]
};

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

class DraftHead {
 public:
  virtual ~DraftHead() = default;
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
  virtual std::unique_ptr<HeadWorkspace> make_workspace(int max_rows) const = 0;

  // A round: begin() makes rows 0..n-1; then step(), one token a row, the first the newest of each
  // sequence, the next ones as drafted. Afterwards logits(i) and state(i) are of the position after
  // the token. A row's result does not depend on the others.
  virtual void begin(std::span<const HeadStart> starts, HeadWorkspace& workspace,
                     kernels::ThreadPool& pool) const = 0;
  virtual void step(std::span<const TokenId> tokens, HeadWorkspace& workspace,
                    kernels::ThreadPool& pool) const = 0;
  // What row `row` proposes for the token at `position` (the t of the sampler's noise), candidates
  // added. coupled: with the request's noise, as the target chooses; else the most likely. raw =
  // softmax probability at the temperature. Changes the row's logits: once a step.
  Proposal choose(int row, const CandidateList& candidates, const SamplingParams& sampling,
                  std::int64_t position, bool coupled, HeadWorkspace& workspace) const;
  // The same of one row's logits [V], which change, and its state [state width].
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

}  // namespace foretoken
