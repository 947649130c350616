// Which tokens the head may draft: the most frequent of the traffic so far. Counted as expected
// occurrences: a generated position adds the target's probability of each of its top tokens, so
// that after a few thousand tokens the ranking already knows what would come; a prompt's token adds
// a fraction. No torch.
#pragma once

#include <cstdint>
#include <vector>

#include "foretoken/protocol/trace_record.h"

namespace foretoken::trainer {

class VocabularyCounts {
 public:
  explicit VocabularyCounts(std::int64_t n_vocab) : mass_(std::size_t(n_vocab), 0.0f) {}
  void observe(const RequestTrace& trace);

  // The `size` tokens of most mass, ascending by id; ties to the lower id, which in a byte-pair
  // vocabulary is the more common token.
  std::vector<TokenId> most_frequent(std::size_t size) const;
  // Of `vocab` (ascending, a multiple of 16) the tokens that have at least `share` of the mass,
  // filled up to a multiple of 16 with the next in mass: what else is read at every step of a head
  // and hardly ever drafted.
  std::vector<TokenId> frequent(const std::vector<TokenId>& vocab, double share) const;
  // The share of the mass that `vocab` holds; 1 where there is none.
  double coverage(const std::vector<TokenId>& vocab) const;

  const std::vector<float>& mass() const { return mass_; }
  bool restore(std::vector<float> mass);  // false: of another size

 private:
  std::vector<float> mass_;
};

}  // namespace foretoken::trainer
