// Runs the learned head for a round's drafting sequences together: a step reads its weights once
// for all of them. Reads each slot's ring of features (feature_rows.h), the last of them of the
// last position that has KV; a sequence without that one (just swapped in, just admitted) is not
// ready and drafts otherwise. What a head computed of a sequence's past (its HeadMemory) is kept
// with the slot and built again from the ring when another head drafts. Served and canary weights
// may differ: rows are grouped by head. Engine thread; allocates in prepare() alone.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/transport.h"
#include "runtime/model/model.h"
#include "runtime/speculate/head/draft_head.h"
#include "runtime/speculate/learned.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {

class HeadSpeculator {
 public:
  // target: on whose device heads run (null: on the host). It and the features outlive this.
  HeadSpeculator(int max_sequences, const Model* target, const FeatureRows& features,
                 kernels::ThreadPool& pool, const Clock& clock);

  // The heads that may draft from now on, at most two; null: none. Before begin() sees them.
  void prepare(const DraftHead* served, const DraftHead* canary);

  // There is a head, and features of the position before the newest token's.
  bool ready(const DraftContext& context) const;

  // One round: begin(), then step() and choose() as long as drafts go on, keep() when some end.
  // active[i]: whether jobs[i] takes part; it must be ready.
  void begin(std::span<const DraftJob> jobs, std::span<const std::uint8_t> active);
  void step(std::span<const TokenId> tokens);  // one a job; those of others are not read
  // Of jobs[job], after a step; once a step.
  Proposal choose(int job, const DraftContext& context, const CandidateList& candidates,
                  std::int64_t position);
  void keep(std::span<const std::uint8_t> active);  // a subset

  // Of the last round.
  int steps() const { return steps_; }
  double begin_ms() const { return begin_ms_; }
  double steps_ms() const { return steps_ms_; }

 private:
  struct Slot {
    HeadMemory memory;
    std::uint64_t history = 0;  // the ring's that it is of
  };
  struct Lane {
    std::uint64_t id = 0;                      // of its head, 0: none
    std::unique_ptr<HeadWorkspace> workspace;  // made for it
    std::vector<int> jobs;                     // of each row
  };
  struct Place {
    int lane = -1, row = -1;
  };
  const Model* target_;
  const FeatureRows& features_;
  kernels::ThreadPool& pool_;
  const Clock& clock_;
  std::vector<Slot> slots_;
  std::array<Lane, 2> lanes_;  // at most a served and a canary's head
  std::vector<Place> places_;  // of each job
  std::vector<HeadStart> starts_;
  std::vector<TokenId> tokens_;
  std::vector<int> kept_;
  int steps_ = 0;
  double begin_ms_ = 0, steps_ms_ = 0;
};

}  // namespace foretoken
