// The engine thread's own state, and one member function a verb of the round:
//   admit -> plan -> draft -> verify -> accept -> commit      (one file each)
// Nothing here is shared: engine.cpp carries requests in and statistics out.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <vector>

#include "foretoken/kernels/thread_pool.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/sequence.h"
#include "runtime/model/feature_rows.h"
#include "runtime/model/logit_rows.h"
#include "runtime/model/model.h"
#include "runtime/observe/net_speedup.h"
#include "runtime/observe/speedup.h"
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
  std::uint64_t version = 0;     // of the weights that drafted for it
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
    return SteadyTime(std::chrono::duration_cast<SteadyTime::duration>(clock_->monotonic()));
  }
  void enqueue(std::unique_ptr<Sequence> sequence);
  // Ends within one round: whole, or aborted.
  void end(RequestId id, FinishReason reason);
  // What a swap replaces goes to `retired`: its destruction is not the engine thread's.
  void set_learned(SpeculatorChoice choice, std::vector<LearnedPointer>& retired);
  std::vector<SavedTraffic> save_traffic() const;
  std::vector<Error> restore_traffic(const std::vector<SavedTraffic>& saved);
  void forget_traffic(const std::string& key_id);
  // The names of a request's pages begin with what they depend on and who may share them. Any
  // thread.
  PageChain chain_of(const EngineRequest& request) const;
  bool plain_now() const { return windows_->plain_now(); }
  // How long the engine's thread was kept from its next round by a swap.
  void swap_took(double ms);
  bool traces() const { return static_cast<bool>(trace_sink_); }
  const HeadTaps& taps() const { return taps_; }
  bool has_work() const { return !waiting_.empty() || !running_.empty(); }
  std::int64_t n_waiting() const { return std::int64_t(waiting_.size()); }
  void round();  // one whole round
  void abort_all();
  void fill(EngineStats& stats) const;

 private:
  EngineCore() = default;
  void admit();   // admit.cpp: waiting -> running, cancellations, preemption
  void plan();    // admit.cpp: what this round decodes (schedule/round_schedule.h)
  void draft();   // draft.cpp
  void verify();  // verify.cpp: the forward pass
  void accept();  // accept.cpp
  void commit();  // commit.cpp
  void preempt(Sequence& sequence);
  void finish(Sequence& sequence, FinishReason reason, EngineEvent&& last);
  void remove_finished();
  DraftContext context_of(const Sequence& sequence) const;
  void capture(const RoundEntry& entry);  // taps.cpp
  void settle_features();
  void restore_features(const Sequence& sequence);
  bool wants_features(const Sequence& sequence) const;
  void accept_one(RoundEntry& entry);
  void tell_logprobs();
  void settle_reports(Sequence* sequence = nullptr);
  void commit_one(RoundEntry& entry);
  void end_captures();  // measure.cpp
  void hand_in_trace(Sequence& sequence);
  void measure(const SpeedupRound& round, bool comparable, const std::string& domain);

  const Clock* clock_ = nullptr;
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
  SteadyTime version_since_, started_;

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
  int max_logit_rows_ = 0;
  ControlCoin coin_{0, 1};

  EngineStats stats_;  // cumulative parts
  SpeedupEstimator speedup_;
  std::unique_ptr<NetSpeedupWindows> windows_;
  // Treatment: rounds that drafted with this kind alone, or for sequences of this version alone.
  // Control: every control round (kinds), every control round of those sequences (versions): what a
  // token costs without speculation, at equal concurrency and context, is the same whoever would
  // have drafted.
  std::array<SpeedupSums, kSpeculatorKinds> speedup_by_kind_;
  static constexpr std::size_t kVersionsMeasured = 8;  // the newest
  std::vector<std::pair<std::uint64_t, SpeedupSums>> speedup_by_version_;
  static constexpr std::size_t kSwapPauses = 1024;
  std::vector<double> swap_pauses_;  // ms, the last ones, as a ring
  std::size_t next_pause_ = 0;
  struct Recent {
    SteadyTime at;
    AcceptanceStats acceptance;
  };
  std::deque<Recent> recent_;  // per-second sums of the last minute
};

}  // namespace foretoken
