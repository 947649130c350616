// Scoring a fusion table on a logged request, without a model: from the logged candidates and the
// target's logged top logits alone, never from a rebuilt store. Shared by the trainer's objective
// and gate. Pure functions; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "foretoken/protocol/trace_record.h"
#include "runtime/speculate/fusion_table.h"

namespace foretoken {

// One generated position as the objective sees it: the distinct candidate tokens and what the
// target gave them. Invariants: token_of[c] < n_tokens for c < n_candidates; sum of p[0..n_tokens)
// + p_other = 1.
struct FusionPosition {
  std::uint8_t n_candidates = 0, n_tokens = 0;
  std::array<std::uint8_t, kMaxCandidates> fusion_class{};  // of each candidate
  std::array<std::uint8_t, kMaxCandidates> token_of{};  // of each candidate: which distinct token
  std::array<float, kMaxCandidates> p{};                // the target's, of each distinct token
  float p_other = 0;                                    // of everything else
  float inverse_temperature = 1;                        // scales the table's scores; 1 at T = 0
};

// Positions without a candidate are left out: no table can propose there.
std::vector<FusionPosition> fusion_positions(const RequestTrace& trace);

// What the target gave each of `tokens` after temperature and filters. At T = 0 the emitted token
// has it all. At T > 0 the normaliser of the filtered distribution follows exactly from the emitted
// token's logged log-probability and logit, and the filters' cut is where the descending cumulative
// sum reaches 1, because top-k, top-p and min-p all keep a prefix. (Penalties and logit bias are
// not logged: with them this is an approximation.) Where no top logits were logged, the emitted
// token has it all.
std::vector<float> target_probabilities(const GeneratedTokenTrace& generated, TokenId emitted,
                                        float temperature, const std::vector<TokenId>& tokens);

// sum_v min(p(v), q(v)) over the candidates and "other"; in [0, 1].
double overlap(const FusionPosition& position, const FusionTable& table);

}  // namespace foretoken
