// The tokens a draft model chooses among: its output matrix cut to those that this traffic is
// likely to want. A draft is only a proposal, so what it cannot name costs acceptance and never a
// token; a small model's whole output matrix is a third of the bytes of its step.
//
// First the lowest ids: a byte-pair vocabulary numbers its tokens in the order it merged them,
// which is by frequency in the text it was made from. Then whatever is seen: a token of a prompt or
// an answer that has no row gets one, in place of the seen ones' oldest. Rows are taken from the
// packed matrix in memory; no file is touched. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/model/model.h"
#include "runtime/model/weights.h"

namespace foretoken {

class DraftVocabulary {
 public:
  // n_tokens: a multiple of 16, at least 32 and less than the model's vocabulary, which outlives
  // this. kSeenShare of them are for seen tokens (at first: the next ids).
  static constexpr double kSeenShare = 0.25;
  static Result<std::unique_ptr<DraftVocabulary>> create(std::shared_ptr<const Model> model,
                                                         std::int64_t n_tokens);

  // Marks tokens for a row. Those that have none get one in the next refresh().
  void see(std::span<const TokenId> tokens);
  // Gives rows to waiting tokens; each group of 16 that changes is gathered anew, about 50 us.
  void refresh(int max_groups);

  const kernels::PackedMatrix& output() const { return rows_.packed; }
  std::span<const TokenId> tokens() const { return tokens_; }  // of each row
  // The row of a token; negative: it has none.
  std::int32_t slot(TokenId token) const { return slot_of_[std::size_t(token)]; }
  std::size_t step_bytes() const { return rows_.file_bytes; }

 private:
  DraftVocabulary() = default;

  static constexpr std::int32_t kAbsent = -1, kWaiting = -2;
  std::shared_ptr<const Model> model_;
  Matrix rows_;
  std::vector<TokenId> tokens_;        // [n_tokens]
  std::vector<std::int32_t> slot_of_;  // [n_vocab]: a slot, kAbsent or kWaiting
  std::vector<TokenId> waiting_;       // oldest first
  std::int64_t first_seen_slot_ = 0;   // a multiple of 16
  std::int64_t next_slot_ = 0;         // the next seen token's
};

}  // namespace foretoken
