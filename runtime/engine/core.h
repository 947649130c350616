// The engine thread's own state, and one member function a verb of the round:
//   admit -> plan -> draft -> verify -> accept -> commit      (one file each)
// Nothing here is shared: engine.cpp carries requests in and statistics out.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "foretoken/kernels/thread_pool.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/probe.h"
#include "runtime/engine/sequence.h"
#include "runtime/model/feature_rows.h"
#include "runtime/model/logit_rows.h"
#include "runtime/model/model.h"
#include "runtime/schedule/round_schedule.h"
#include "runtime/speculate/learned.h"
#include "runtime/speculate/portfolio.h"

namespace foretoken {

// One sequence's part of a round.
struct RoundEntry {
  Sequence* sequence = nullptr;
  bool decode = false;   // else a prefill chunk
  bool samples = false;  // decode, or the prefill chunk that ends the prompt
  int n_rows = 0, first_row = 0;
  int first_logit = 0;  // its logit rows: n_rows for decode, 1 for the last prefill chunk
  int job = -1;         // index of its DraftJob
  int accepted = 0;
  // Of its rows, those whose logits gave the emitted tokens: the path that was accepted, from row
  // 0.
  std::vector<int> path;
  std::vector<TokenId> emitted;  // accepted drafts and the target's own token
  std::vector<TokenLogprob> logprobs;
  int first_report = 0;  // of its emitted tokens, if they are reported
};

struct Round {
  std::vector<RoundEntry> entries;
  std::vector<DraftJob> jobs;
  std::vector<TokenId> tokens;  // [n_rows]
  std::vector<KvRows> groups;
  std::vector<int> logit_rows;
  bool control = false;           // speculation off, by the coin
  bool plain = false;             // speculation and capture off: a window of plain serving
  bool has_taps = false;          // the features are of this round
  int n_entries = 0, n_jobs = 0;  // used prefixes: buffers are kept from round to round
  double draft_ms = 0, verify_ms = 0;
  SteadyTime started;
};

// A row of logits whose report is wanted, until its sequence's trace has it.
struct ReportedRow {
  Sequence* sequence = nullptr;
  int row = 0;
  std::int64_t traced_as = -1;  // index in the trace's `generated`, once it is there
};

class EngineCore {
 public:
  static Result<std::unique_ptr<EngineCore>> create(
      std::shared_ptr<const Model> model, std::shared_ptr<const KvCalibration> calibration,
      std::shared_ptr<const Model> draft_model,
      std::shared_ptr<const KvCalibration> draft_calibration, const EngineOptions& options,
      TraceSink trace_sink, const Clock& clock);
  ~EngineCore();

  const EngineOptions& options() const { return options_; }
  SteadyTime now() const {  // any thread
    return SteadyTime(std::chrono::duration_cast<SteadyTime::duration>(clock_.monotonic()));
  }
  // All that a request needs while it runs. Any thread.
  std::unique_ptr<Sequence> sequence_of(EngineRequest request) const;
  void enqueue(std::unique_ptr<Sequence> sequence);
  // Ends within one round: whole, or aborted.
  void end(RequestId id, FinishReason reason);
  // What a swap replaces goes to `retired`: its destruction is not the engine thread's.
  void set_learned(SpeculatorChoice choice, std::vector<LearnedPointer>& retired);
  std::vector<SavedTraffic> save_traffic() const;
  std::vector<Error> restore_traffic(const std::vector<SavedTraffic>& saved);
  void forget_traffic(const std::string& key_id);
  bool plain_now() const { return probe_->plain_now(); }
  // How long the engine's thread was kept from its next round by a swap.
  void swap_took(double ms) { probe_->swap_took(ms); }
  bool has_work() const { return !waiting_.empty() || !running_.empty(); }
  std::int64_t n_waiting() const { return std::int64_t(waiting_.size()); }
  void round();  // one whole round
  void abort_all();
  void fill(EngineStats& stats) const;

 private:
  EngineCore(std::shared_ptr<const Model> model, const EngineOptions& options, TraceSink trace_sink,
             const Clock& clock);
  // create(), in this order (core.cpp).
  Status settle_options(const Model* draft_model);
  Status make_memory(std::shared_ptr<const KvCalibration> calibration, const Model* draft_model);
  Result<std::unique_ptr<ModelSpeculator>> make_model_speculator(
      std::shared_ptr<const Model> draft_model,
      std::shared_ptr<const KvCalibration> calibration) const;
  void make_portfolio(std::unique_ptr<ModelSpeculator> model_speculator);
  void make_buffers();
  KvOptions kv_options(KvMode mode, std::size_t bytes, std::size_t tail_bytes) const;

  void admit();   // admit.cpp: waiting -> running, cancellations, preemption
  void plan();    // admit.cpp: what this round decodes (schedule/round_schedule.h)
  void draft();   // draft.cpp
  void verify();  // verify.cpp: the forward pass
  void accept();  // accept.cpp
  void commit();  // commit.cpp
  template <class F>
  void for_each_sequence(const F& fn) {
    for (auto& s : running_) fn(*s);
    for (auto& s : waiting_) fn(*s);
  }
  void reserve(Sequence& sequence);
  void preempt(Sequence& sequence);
  void finish(Sequence& sequence, FinishReason reason, EngineEvent&& last);
  void remove_finished();
  DraftContext context_of(const Sequence& sequence) const;
  const DraftTree& draft_of(const RoundEntry& entry) const;
  void capture(const RoundEntry& entry);  // taps.cpp
  void settle_features();
  void restore_features(const Sequence& sequence);
  bool wants_features(const Sequence& sequence) const;
  void accept_one(RoundEntry& entry);
  void tell_logprobs();
  void settle_reports(Sequence* sequence = nullptr);
  void commit_one(RoundEntry& entry);
  ProbedRound probed() const;  // measure.cpp
  void end_captures();
  void hand_in_trace(Sequence& sequence);
  int version_label(const Sequence& sequence) const {
    return sequence.learned == learned_.served.get() ? served_label_ : canary_label_;
  }
  // The names of a request's pages begin with what they depend on and who may share them.
  PageChain chain_of(const EngineRequest& request) const;

  const Clock& clock_;
  std::shared_ptr<const Model> model_;
  EngineOptions options_;
  TraceSink trace_sink_;
  std::unique_ptr<kernels::ThreadPool> pool_;
  std::unique_ptr<SequenceMemory> memory_;
  std::string page_root_;  // models, KV modes, sink and window
  std::unique_ptr<ForwardWorkspace> workspace_;
  std::unique_ptr<Sampler> sampler_;  // of --spec-sampling rejection
  std::unique_ptr<Portfolio> portfolio_;
  SpeculatorChoice learned_;

  std::deque<std::unique_ptr<Sequence>>
      waiting_;  // front is next; preempted ones return to the front
  std::vector<std::unique_ptr<Sequence>> running_;  // admission order
  std::vector<bool> slot_used_;
  // The KV cache and the running sequences as planning sees them.
  struct Pages final : PageBudget {
    explicit Pages(EngineCore& core) : core(core) {}
    bool reserve(std::size_t sequence, std::int64_t length) override;
    void preempt(std::size_t youngest) override;
    EngineCore& core;
  };
  RoundLimits limits_;
  std::vector<SequenceState> states_;  // of running_, as this round was planned
  RoundSchedule plan_;
  Round round_;
  HeadTaps taps_{};
  std::unique_ptr<FeatureRows> features_;  // null: nobody reads hidden states
  bool features_pending_ = false;          // some are logged and not settled
  std::unique_ptr<LogitRows> logits_;
  std::vector<ReportedRow> reports_;  // settled before logits or traces change hands
  // What the pool's idle workers do of a round while the engine goes on: of the rows that are
  // reported, and of the features that are logged.
  struct RoundTask {
    EngineCore* core;
    void operator()(int i) const;
  } round_task_{this};
  ControlCoin coin_;
  SteadyTime started_, version_since_;

  std::unique_ptr<EngineProbe> probe_;
  int served_label_ = 0, canary_label_ = 0;  // the probe's
};

}  // namespace foretoken
