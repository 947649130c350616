// What a round costs, as the draft policy is told: of a decode round by its rows (of all sequences:
// 1 + its draft each), of what attention reads, and of the speculators that run a model. In one
// unit throughout: of a round of one row where a server measures them (cost_model.h), of ms where
// they were said in its hello; the policy's choices are the same in both.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace foretoken {

// One decode round as it was run. Rounds with prefill rows are told too: they count no costs.
struct RoundMeasurement {
  int sequences = 0;  // decoding
  int rows = 0;       // their rows: 1 + draft each
  int prefill_rows = 0;
  double work = 0;  // sum over sequences of rows * context / 1000
  int emitted = 0;  // tokens, all sequences
  double verify_ms = 0;
  bool control = false;  // speculation off by the coin
  int draft_steps = 0;   // of the draft model
  double draft_ms = 0;
  int head_steps = 0;  // of the learned head; 0: it did not run
  double head_begin_ms = 0, head_steps_ms = 0;
};

struct RoundCosts {
  std::vector<double> rounds;      // [0] is 1 row; empty: not measured
  std::vector<std::uint8_t> seen;  // how often each was, up to 255; empty: often enough
  double slope = 0;                // of work
  double batch_row = 0;            // of one more row far out, where arithmetic binds
  double head_start = 0, head_step = 0;
  double model_step = 0;  // of the draft model, catching up included; 0: never measured

  // Until something is measured: a round of r rows costs 1 + 0.06 (r - 1) of a plain one (0.05 to
  // 0.09 on AVX-512 and AVX2 cores with 4-bit weights), a step of the head a twentieth, its start a
  // quarter of that.
  static RoundCosts typical();
  // Damaged or absurd measurements (not positive, not finite) are replaced by typical ones.
  static RoundCosts measured(std::span<const float> round_ms, float head_start_ms,
                             float head_step_ms);
  static RoundCosts exactly(std::span<const float> round_ms, float head_start_ms,
                            float head_step_ms);
  std::vector<float> round_ms() const;
  // The same in units of a round of one row.
  RoundCosts relative() const;

  // Beyond the last measured count by its last difference. rows >= 1.
  double round(int rows) const;
  int times_seen(int rows) const;
  double of(const RoundMeasurement& round, double so_far = 0) const;  // added to what is so far
  // One round of one sequence that drafted `drafted` tokens, with `head_steps` steps of the head.
  double draft_round(int drafted, int head_steps) const {
    return of({.sequences = 1, .rows = 1 + drafted, .head_steps = head_steps});
  }
  bool operator==(const RoundCosts&) const = default;
};

}  // namespace foretoken
