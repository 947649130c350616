// What the server logs of one finished request, as plain C++ (the wire and disk form is in trace.h
// / PROTOCOL.md). Built by the engine at commit, token by token; immutable once pushed to the ring.
// Invariants: tokens.size() == n_prompt + n_generated; generated.size() == n_generated;
//             the rounds' (accepted + 1) and the prompt account for every generated token, or gap
//             is true.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "foretoken/protocol/bounded_vector.h"
#include "foretoken/protocol/ids.h"

namespace foretoken {

// An n-gram candidate for the token at one position. `fusion_class` indexes the fusion table:
//   0..4   the request's own context, longest suffix match of 1, 2, 3, 4, 5-or-more tokens
//   5..64  traffic store: 5 + (order - 2) * 20 + probability_bucket * 4 + count_bucket, order 2..4
// The buckets are defined in runtime/speculate/candidates.h and are part of the trace format.
struct Candidate {
  TokenId token = 0;
  std::uint8_t fusion_class = 0;
};
inline constexpr int kFusionClasses = 65;
inline constexpr int kMaxCandidates =
    8;  // 1 own-context + 2 for each of the orders 2, 3, 4; one spare
using CandidateList = BoundedVector<Candidate, kMaxCandidates>;

inline constexpr int kTeacherTopK = 64;
inline constexpr int kMaxDraft = 16;  // drafted tokens on one path: the most positions of a draft
inline constexpr int kMaxDraftNodes =
    64;  // of a draft's tree: rows of one sequence beside its last token's
inline constexpr int kTracedPrompt = 256;  // positions at the prompt's end whose taps are logged

struct GeneratedTokenTrace {
  CandidateList candidates;  // as this server saw them, looked up once
  // The target's top-k, before temperature and filters.
  BoundedVector<TokenId, kTeacherTopK> top_ids;
  BoundedVector<float, kTeacherTopK> top_logits;  // same order, descending
  float log_sum_exp = 0;  // over the whole vocabulary, before temperature and filters
  float logprob = 0;      // of the emitted token, after temperature and filters
};

// Whether each drafted token follows the one before it (empty: so too).
inline bool is_chain(std::span<const std::int32_t> parents) {
  for (std::size_t i = 0; i < parents.size(); ++i)
    if (parents[i] != std::int32_t(i) - 1) return false;
  return true;
}

struct RoundTrace {
  std::int32_t start = 0;  // absolute position of the first token this round could emit
  BoundedVector<TokenId, kMaxDraftNodes> drafted;  // the nodes of a tree, parents first
  // Of each the drafted token it follows, -1: none; empty: a chain.
  BoundedVector<std::int32_t, kMaxDraftNodes> parents;
  BoundedVector<float, kMaxDraftNodes> confidences;     // one a drafted token
  BoundedVector<SpeculatorKind, kMaxDraftNodes> kinds;  // one a drafted token
  std::int32_t accepted = 0;                            // of them, along one path
  SpeculatorVersion version;
  float draft_ms = 0;
  float verify_ms = 0;
  std::int32_t rows = 0;  // of the whole engine round, all sequences
  bool control = false;   // a round of the random control: speculation was off
};

// One engine round as the draft policy met it (runtime/speculate/draft_policy.h): what it was told
// and what it carried into the round, so that its choice can be made again. Costs are in units of a
// round of one row. The jobs are all the sequences of the round that could draft, in the policy's
// order.
struct PolicyRound {
  std::int32_t n_jobs = 0;  // 0: nothing was to be drafted (control rounds): nothing below
  std::int32_t job = 0;     // this request's place among them
  std::int32_t prefill_rows = 0, max_extra_rows = 0;
  std::int32_t n_costs = 0, n_told = 0;  // of PolicyLog's arrays
  std::int16_t max_draft = 0, n_fixed = -1;
  bool head_alone = false, model = false, model_alone = false;
  double slope = 0, batch_row = 0, head_start = 0, head_step = 0, model_step = 0;
  double rate_tokens = 0, rate_cost = 0, predicted = 0, came_true = 0;
  double model_budget = 0, head_budget = 0;
  std::int32_t model_rounds_left = 0, head_rounds_left = 0;
  std::uint64_t random = 0;
  double cost = 0;              // of the round as it was chosen, a draft model's steps aside
  std::int32_t head_steps = 0;  // as chosen
  bool operator==(const PolicyRound&) const = default;
};

struct PolicyJobTrace {
  std::int32_t max_tokens = 0, n_tokens = 0, model_lag = 0;
  bool head_ready = false;
  bool operator==(const PolicyJobTrace&) const = default;
};

// Of all rounds of a request, one after another.
struct PolicyLog {
  std::vector<PolicyRound> rounds;   // one a round of the trace, or none at all: not recorded
  std::vector<PolicyJobTrace> jobs;  // n_jobs a round
  std::vector<double> costs;         // n_costs a round: of 1, 2, ... rows
  std::vector<std::uint8_t> seen;    // of each: how often that count was measured, up to 255
  // n_told a round: what the speculators offered or expected, in the order in which they were
  // asked. An offer's value is its calibrated confidence.
  std::vector<float> told;
  std::vector<std::uint8_t> told_as;  // of each: ToldAs bits
  bool operator==(const PolicyLog&) const = default;
  // Of rounds of so many jobs, of drafts of so many positions. What is not used stays untouched.
  void reserve(std::size_t n_rounds, std::size_t n_jobs, std::size_t n_positions) {
    const std::size_t rows = n_rounds * n_jobs * (n_positions + 1);
    // Offers for a position, and what more is expected to be worth.
    constexpr std::size_t kTold = 6;
    rounds.reserve(n_rounds);
    jobs.reserve(n_rounds * n_jobs);
    costs.reserve(rows);
    seen.reserve(rows);
    told.reserve(kTold * rows);
    told_as.reserve(kTold * rows);
  }
  std::size_t bytes() const {
    return rounds.size() * sizeof(PolicyRound) + jobs.size() * sizeof(PolicyJobTrace) +
           costs.size() * 9 + told.size() * 5;
  }
};
// The low four bits are the offer's SpeculatorKind; kNone: nothing was offered.
enum ToldAs : std::uint8_t {
  kToldKind = 0x0f,
  kToldEnds = 0x10,      // an end of generation
  kToldAgrees = 0x20,    // the head's: it names the cheap kinds' choice
  kToldMore = 0x40,      // another offer for the same position, or the next of a draft, follows
  kToldExpected = 0x80,  // no offer: what a speculator is expected to be worth
};

struct TraceSampling {
  float temperature = 0;
  std::int32_t top_k = 0;  // 0: off
  float top_p = 1;
  float min_p = 0;
  std::uint64_t seed = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::vector<TokenId> stop_tokens;  // a draft ends with one of these
  bool rejection = false;  // --spec-sampling rejection: drafts did not use the request's noise
};

struct RequestTrace {
  std::uint64_t server_run = 0;  // random, one a start of the server (set by the publisher)
  RequestId request;             // unique within one server run
  std::string domain;            // metadata.domain, else a label of the API key
  std::string key_id;            // whose store this belongs to ("" = the shared one)
  std::array<std::uint8_t, 32> model_fingerprint{};
  TraceSampling sampling;
  std::int64_t unix_ms = 0;     // when it finished (wall clock; for retention only)
  std::vector<TokenId> tokens;  // prompt, then output
  std::int32_t n_prompt = 0;
  std::vector<GeneratedTokenTrace> generated;
  std::vector<RoundTrace> rounds;
  PolicyLog policy;
  // Hidden states of the taps, fp16 with one fp32 scale a (position, tap), of the positions
  // tap_first, tap_first + 1, ...: the end of the prompt and every generated position that has KV.
  // After a prefix hit they begin at the page border it resumed from: always at or before the
  // prompt's last position, from which the first draft is made.
  // Empty when not captured.
  std::int32_t n_taps = 0, tap_width = 0, tap_first = 0;
  std::vector<std::int32_t>
      tap_layers;  // [n_taps]: outputs of these layers; empty: the default ones
  std::vector<std::uint16_t> tap_values;  // [n_positions, n_taps, tap_width]
  std::vector<float> tap_scales;          // [n_positions, n_taps]
  std::int64_t tap_positions() const {
    return n_taps > 0 ? std::int64_t(tap_scales.size()) / n_taps : 0;
  }
  bool gap = false;  // something is missing (preemption, ring pressure): do not train on rounds
};

}  // namespace foretoken
