// What a model remembers of the sequences that it runs: keys and values, in one KvCache a page
// class (layers whose pages are alike). Whoever runs sequences holds this, never a cache. Owned and
// called by the engine thread.
// Invariant: after commit(sequence, n), memory equals that of a plain run of n tokens: no row to
// come can tell whether any of them was drafted, what was rejected after them, how they were cut
// into passes, or that they were found in the prefix index. length() is how far a sequence is, and
// the only such count.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/kv/kv_cache.h"

namespace foretoken {

class SequenceMemory {
 public:
  // Caches of as many sequences and tokens each; at least one. A layer finds its own by its class.
  explicit SequenceMemory(std::vector<std::unique_ptr<KvCache>> classes);

  KvCache& cache(int page_class = 0) const { return *classes_[std::size_t(page_class)]; }

  std::optional<KvSequence> open();  // nullopt: as many as there may be are open
  void close(KvSequence sequence);
  // A whole request's end: what it computed is kept under the names in `chain`.
  void close_and_keep(KvSequence sequence, const PageChain& chain);
  // Takes over what is kept of a fresh sequence's beginning, as far as every class has it, at most
  // to `limit`; returns the length then (0: nothing).
  std::int64_t resume(KvSequence sequence, const PageChain& chain, std::int64_t n_prompt,
                      std::int64_t limit);
  void forget(std::uint64_t owner);
  // Room for positions below `length`. False: there is none, in some class.
  bool reserve(KvSequence sequence, std::int64_t length);
  // Positions below `length` are final. Monotone; rows may not start past it.
  void commit(KvSequence sequence, std::int64_t length);
  // Of the last pass's rows from first_position on, which were a tree: those of an accepted path
  // become consecutive positions. Before commit().
  void keep_path(KvSequence sequence, std::int64_t first_position, std::span<const int> path);
  std::int64_t length(KvSequence sequence) const { return cache().committed(sequence); }

  std::int64_t capacity_tokens() const;  // that one sequence could hold alone
  KvStats stats() const;                 // of all classes together
  const KvOptions& options() const { return cache().options(); }
  std::string validate() const;  // for tests: empty if all is well

 private:
  std::vector<std::unique_ptr<KvCache>> classes_;
};

}  // namespace foretoken
