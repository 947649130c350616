// The `model` speculator: a smaller model with the target's tokenizer and its own paged KV cache
// (INT2 included) drafts token by token, all sequences of a round together. It sees only committed
// tokens plus its own draft; its cache is rolled back by overwriting, like the target's. Engine
// thread only.
#pragma once

#include <memory>
#include <vector>

#include "runtime/kv/kv_cache.h"
#include "runtime/model/model.h"
#include "runtime/speculate/draft_vocabulary.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {

struct ModelSpeculatorOptions {
  KvOptions kv;  // of the draft: mode, pool, max_sequences (engine slots), max_rows
  // Tokens it chooses among (DraftVocabulary), a multiple of 16; 0, or no less than half of the
  // vocabulary: all of them.
  std::int64_t draft_vocab = 0;
  bool rejection =
      false;  // draft from an explicit sparse distribution (speculative rejection sampling)
};

class ModelSpeculator {
 public:
  static Result<std::unique_ptr<ModelSpeculator>> create(
      std::shared_ptr<const Model> model, std::shared_ptr<const KvCalibration> calibration,
      const ModelSpeculatorOptions& options, kernels::ThreadPool& pool);
  void open(const DraftContext& context);  // a sequence starts, or returns after preemption
  // whole: it ended by itself, so that what was computed of it may serve others.
  void close(const DraftContext& context, bool whole);
  void forget(std::uint64_t owner) { memory_->forget(owner); }
  void propose(std::span<DraftJob> jobs);     // fills every job's draft
  void observe(const DraftOutcome& outcome);  // after commit
  KvStats kv_stats() const { return memory_->stats(); }
  // Committed tokens this slot's cache has not seen yet (the last one not counted).
  std::int64_t lag(const DraftContext& context) const {
    return std::int64_t(context.tokens.size()) - 1 - fed(slots_[std::size_t(context.slot)]);
  }
  int last_steps() const {
    return last_steps_;
  }  // forward passes of the last propose(), catching up included

 private:
  struct Slot {
    KvSequence kv = -1;  // -1: closed, or its pages had to be given up
    // The length that its last draft went on from, until observe() has kept what held of it.
    std::int64_t drafted_at = -1;
  };
  ModelSpeculator(std::shared_ptr<const Model> model, const ModelSpeculatorOptions& options,
                  kernels::ThreadPool& pool);
  // Runs rows through the draft model; logits of each group's last row when asked.
  void run(std::span<const KvRows> groups, int n_rows, bool want_logits);
  std::int64_t n_choices() const {
    return vocabulary_ ? vocabulary_->output().n_out : model_->config().n_vocab;
  }
  bool catch_up(DraftJob& job);
  // Committed tokens whose K and V are there.
  std::int64_t fed(const Slot& slot) const { return slot.kv < 0 ? 0 : memory_->length(slot.kv); }

  std::shared_ptr<const Model> model_;
  ModelSpeculatorOptions options_;
  kernels::ThreadPool& pool_;
  std::unique_ptr<SequenceMemory> memory_;
  std::unique_ptr<DraftVocabulary> vocabulary_;  // null: the whole vocabulary
  std::unique_ptr<ForwardWorkspace> workspace_;
  std::vector<Slot> slots_;
  std::vector<TokenId> row_tokens_;
  std::vector<KvRows> groups_;
  std::vector<int> logit_rows_;
  std::unique_ptr<LogitRows> logits_;  // [max_sequences, n_choices()]
  std::vector<DraftJob*> active_;
  int last_steps_ = 0;
};

}  // namespace foretoken
