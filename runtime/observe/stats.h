// What the engine measures, as a plain copyable struct: /stats, /metrics and `foretoken stats`
// format it. Definitions (printed with the figures, because tools differ):
//   acceptance length = 1 + accepted tokens per round *that drafted*
//   draft length = drafted tokens per such round
//   speedup = decode time per token without speculation / with it, from control rounds (law 6)
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/trace_record.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/observe/speculator_state.h"

namespace foretoken {

class SpeedupSums;

struct Interval {
  double value = 0, low = 0, high = 0;  // 95 %
  std::int64_t rounds = 0, control_rounds = 0;
};

// Everything on (capture, trainer, speculation) against plain serving with capture off and the
// trainer paused, from windows drawn at random: net_speedup.h.
struct NetSpeedup {
  std::optional<Interval> value;  // nullopt: not enough windows yet; rounds: windows, see below
  std::int64_t windows = 0, plain_windows = 0;
  bool plain_now = false;
};

struct AcceptanceStats {
  std::int64_t rounds = 0;  // decode rounds of sequences (one sequence, one round)
  std::int64_t drafting_rounds = 0;
  std::int64_t drafted = 0, accepted = 0, emitted = 0;
  std::array<std::int64_t, kMaxDraft> drafted_at{}, accepted_at{};
  void add(const AcceptanceStats& other);
  double acceptance_length() const {
    return drafting_rounds ? 1.0 + double(accepted) / double(drafting_rounds) : 1.0;
  }
  double draft_length() const {
    return drafting_rounds ? double(drafted) / double(drafting_rounds) : 0.0;
  }
};

struct EngineStats {
  double uptime_s = 0;
  std::int64_t requests_running = 0, requests_waiting = 0;
  std::int64_t requests_finished = 0, requests_aborted = 0, requests_rejected = 0, preemptions = 0;
  std::int64_t prompt_tokens = 0, generated_tokens = 0;
  // Prompt tokens of admitted requests, and those of them that the prefix cache had.
  std::int64_t prefix_cache_queries = 0, prefix_cache_hits = 0;
  double decode_tokens_per_s_last_minute = 0;
  std::int64_t engine_rounds = 0, control_rounds = 0;
  AcceptanceStats acceptance;  // all
  AcceptanceStats acceptance_last_minute;
  std::map<std::string, AcceptanceStats> by_domain;
  std::map<std::string, AcceptanceStats> by_kind;  // "ngram", "fusion", "model", ...
  std::map<std::uint64_t, AcceptanceStats> by_version;
  std::optional<Interval> speedup;  // nullopt: not enough control rounds yet
  std::optional<Interval> speedup_last_minute;
  // By what drafted: the kinds of a round's drafts, the version of its sequences, where they agree.
  std::map<std::string, Interval> speedup_by_domain, speedup_by_kind;
  std::map<std::uint64_t, Interval> speedup_by_version;
  NetSpeedup net_speedup;
  std::int64_t traces_plain_window = 0;  // requests whose capture one ended
  // A copy of the estimator's sums over all rounds so far: the speedup of any span of time is
  // estimated from the difference of two (GET /stats?sums=1). Null: nothing measured.
  std::shared_ptr<const SpeedupSums> speedup_sums;
  SpeculatorVersion version;
  std::optional<SpeculatorVersion> canary;  // drafts for a share of the requests
  double version_age_s = 0;
  std::int64_t swaps = 0;
  // The time the engine spent between two rounds to apply a swap; of the last 1024 swaps.
  double swap_pause_last_ms = 0, swap_pause_p50_ms = 0, swap_pause_p99_ms = 0,
         swap_pause_max_ms = 0;
  KvStats kv, draft_kv;
  std::int64_t traffic_store_entries = 0, traffic_store_bytes = 0;
  // the round cost model as fitted now: ms for 1..17 rows at the current mean context
  std::vector<double> round_ms_by_rows;
  // the recurrent head, measured while serving: begin() of a round, and a step of one draft
  // position (0: not measured yet)
  double head_start_ms = 0, head_step_ms = 0;
};

// Filled by the trace and swap threads, not by the engine.
struct LinkStats {
  std::int64_t traces_sent = 0;
  std::map<std::string, std::int64_t> traces_dropped;  // by reason
  std::int64_t bundles_received = 0;
  std::map<std::string, std::int64_t> bundles_rejected;  // by reason
  std::int64_t peers_refused = 0;  // attempts to connect without a trusted key
  bool trainer_connected = false;
  std::optional<std::int64_t> trainer_step;
  std::optional<double> trainer_loss;
  std::string trainer_verdict;                     // of the last gate, once there is one
  std::vector<CandidateVerdict> trainer_verdicts;  // the last decisions, oldest first
  SpeculatorState speculator;
};

}  // namespace foretoken
