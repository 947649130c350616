// Where a learned head runs: the buffers of a batch of drafts and what executes it, on the device
// of the model whose hidden states it reads. Made by that model (Model::make_head_workspace) from
// the head's weights, which are shared; of one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>

#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/ids.h"
#include "runtime/model/feature_rows.h"
#include "runtime/model/sampling_params.h"

namespace foretoken {

struct Proposal;
class HeadWorkspace;

// What a model has to know of a head: how it runs on the host. Another device reads its weights.
class HeadWeights {
 public:
  virtual ~HeadWeights() = default;
  // memory: of what a row leaves for choose(), and of HeadMemory. The head outlives the workspace.
  virtual std::unique_ptr<HeadWorkspace> make_host_workspace(
      int max_rows, std::pmr::memory_resource* memory) const = 0;
};

// What a windowed head keeps of one sequence between rounds: keys and values of positions
// [first, end), of the head that wrote them, on the device that it runs on. Room is made by
// HeadWorkspace::reserve() alone.
struct HeadMemory {
  std::uint64_t head = 0;  // its id(); 0: nothing is kept
  std::int64_t first = 0, end = 0;
  std::shared_ptr<float[]> values;
  std::size_t n_values = 0;
  void forget() { head = 0; }
};

// One row of a round: a sequence whose newest token has no KV yet, and whose features end with the
// position before it (features.end == tokens.size() - 1).
struct HeadStart {
  std::span<const TokenId> tokens;
  FeatureView features;
  HeadMemory* memory = nullptr;
};

class HeadWorkspace {
 public:
  virtual ~HeadWorkspace() = default;
  HeadWorkspace(const HeadWorkspace&) = delete;
  HeadWorkspace& operator=(const HeadWorkspace&) = delete;
  int rows() const { return n_; }
  int max_rows() const { return max_rows_; }

  virtual void reserve(HeadMemory& memory) = 0;  // what its head keeps of a sequence fits

  // A round: begin() makes rows 0..n-1; then step(), one token a row, the first the newest of each
  // sequence, the next ones as drafted; then what each row proposes for the position after the
  // token. A row's result does not depend on the others.
  virtual void begin(std::span<const HeadStart> starts, kernels::ThreadPool& pool) = 0;
  virtual void step(std::span<const TokenId> tokens, kernels::ThreadPool& pool) = 0;
  // Of row `row` for the token at `position` (the t of the sampler's noise), candidates added.
  // coupled: with the request's noise, as the target chooses; else the most likely. raw = softmax
  // probability at the temperature. Changes the row: once a step.
  virtual Proposal choose(int row, const CandidateList& candidates, const SamplingParams& sampling,
                          std::int64_t position, bool coupled) = 0;
  // Keeps the rows listed (ascending), in that order: row i is then what rows[i] was. Between two
  // steps.
  virtual void keep(std::span<const int> rows) = 0;

 protected:
  explicit HeadWorkspace(int max_rows) : max_rows_(max_rows) {}
  const int max_rows_;
  int n_ = 0;
};

}  // namespace foretoken
