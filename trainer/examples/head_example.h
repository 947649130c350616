// One request as the head learns from it: the target's features before every generated token, the
// target's distribution over its top tokens, and the logged candidates. Everything that depends on
// the draft vocabulary is worked out when a batch is made, so that the vocabulary may change. No
// torch.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "foretoken/protocol/trace_record.h"

namespace foretoken::trainer {

inline constexpr int kTeacherTokens = 32;  // of the logged 64; the rest hardly ever overlaps

struct HeadExample {
  std::int32_t n = 0;      // generated tokens
  std::int32_t first = 0;  // the first generated token whose features are here
  std::int32_t hidden = 0;
  std::vector<std::int32_t> tap_layers;  // as the trace names them; empty: the default ones
  std::uint64_t domain = 0;              // the hash of its name
  float inverse_temperature = 1;         // 1 at T = 0
  std::vector<TokenId> tokens;           // [n], generated
  // Of the position before each generated token first .. n - 1 (its features are known when the
  // token is the newest): [n - first, kHeadTaps, hidden] fp16, [n - first, kHeadTaps] scales.
  std::vector<std::uint16_t> features;
  std::vector<float> scales;
  // The target's distribution for each generated token, most probable first; -1 ends it. At T = 0
  // that of the teacher's temperature: softer than the argmax alone.
  std::vector<TokenId> teacher_ids;  // [n, kTeacherTokens]
  std::vector<float> teacher_p;      // [n, kTeacherTokens]
  // Whether a draft was refused there: the target was asked what it wanted instead.
  std::vector<std::uint8_t> refused;       // [n]
  std::vector<std::uint8_t> n_candidates;  // [n]
  std::vector<Candidate> candidates;       // [n, kMaxCandidates]

  // A chain starts at a generated token that has features and a successor.
  std::int32_t n_starts() const { return n - 1 > first ? n - 1 - first : 0; }
  std::size_t bytes() const;
};

// nullopt: nothing to learn from (no features, one token, another model's width or vocabulary).
// greedy_temperature: of the teacher of a request at T = 0, above 0.
std::optional<HeadExample> head_example(const RequestTrace& trace, std::int64_t hidden,
                                        std::int64_t n_vocab, double greedy_temperature);

}  // namespace foretoken::trainer
