// Which rows a round runs, and who has to make room for them: pure functions of what they are told.
// The engine tells the state of its sequences and does what the plan says (engine/admit.cpp,
// verify.cpp).
// Rules: sequences are in order of admission, and nobody loses pages to a younger one. Those that
// decode come first, each with room for its longest draft, so that drafting cannot fail later.
// Prefill chunks share the rows that the drafts left, first come first served; they take pages from
// younger sequences only where nobody decodes.
// A plan's vectors are kept from round to round: planning allocates nothing once they have grown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace foretoken {

// One running sequence.
struct SequenceState {
  std::int64_t tokens = 0;       // prompt and output
  std::int64_t computed = 0;     // of them that have KV
  std::int64_t prefill_end = 0;  // prefill ends here
  std::int64_t may_come = 0;     // tokens it may still emit
  bool decodes = false;          // computed + 1 == tokens, past the prompt; else it prefills
  bool drafts = false;           // speculation is wanted for it
};

struct RoundLimits {
  std::int64_t max_rows = 0;  // of a round, drafts and prefill together
  int max_draft = 0;
};

// The KV pages that a plan may take. Sequences by their index in the span that is planned.
class PageBudget {
 public:
  virtual ~PageBudget() = default;
  // Room for `length` positions in all; false, and nothing changed: not without taking pages from
  // another.
  virtual bool reserve(std::size_t sequence, std::int64_t length) = 0;
  // All pages of the youngest are free; it starts over when it is admitted again.
  virtual void preempt(std::size_t youngest) = 0;
};

struct RoundSchedule {
  struct Decode {
    std::size_t sequence;
    int max_draft;
  };
  struct Chunk {
    std::size_t sequence;
    int rows;
  };
  std::vector<Decode> decode;
  std::vector<Chunk> prefill;
  std::size_t n_running = 0;      // those after them were preempted
  bool has_prefill = false;       // somebody has a prompt to go
  std::int64_t prefill_rows = 0;  // expected beside the longest drafts
};

// Rows of a sequence's first round: what has to fit before it is admitted. `computed` of its tokens
// were found in the prefix cache.
std::int64_t first_length(std::int64_t tokens, std::int64_t computed, const RoundLimits& limits);

// Before anything is drafted: fills all of the plan but its chunks.
void plan_decode(std::span<const SequenceState> running, const RoundLimits& limits,
                 PageBudget& pages, RoundSchedule& plan);
// Once it is known what was drafted: `rows` of the round are taken.
void plan_prefill(std::span<const SequenceState> running, const RoundLimits& limits,
                  std::int64_t rows, PageBudget& pages, RoundSchedule& plan);

}  // namespace foretoken
