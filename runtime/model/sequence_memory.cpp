#include "runtime/model/sequence_memory.h"

#include <algorithm>
#include <cassert>
#include <limits>

namespace foretoken {

SequenceMemory::SequenceMemory(std::vector<std::unique_ptr<KvCache>> classes)
    : classes_(std::move(classes)) {
  assert(!classes_.empty());
}

// All classes open and close the same sequences, so that they give the same handles.
std::optional<KvSequence> SequenceMemory::open() {
  const std::optional<KvSequence> sequence = classes_.front()->open();
  for (std::size_t c = 1; c < classes_.size(); ++c) {
    [[maybe_unused]] const auto same = classes_[c]->open();
    assert(same == sequence);
  }
  return sequence;
}

void SequenceMemory::close(KvSequence sequence) {
  for (const auto& c : classes_) c->close(sequence);
}

void SequenceMemory::close_and_keep(KvSequence sequence, const PageChain& chain) {
  for (const auto& c : classes_) c->close_and_keep(sequence, chain);
}

std::int64_t SequenceMemory::resume(KvSequence sequence, const PageChain& chain,
                                    std::int64_t n_prompt, std::int64_t limit) {
  for (;;) {
    std::int64_t least = std::numeric_limits<std::int64_t>::max(), most = 0;
    for (const auto& c : classes_) {
      const std::int64_t length = c->resume(sequence, chain, n_prompt, limit);
      least = std::min(least, length);
      most = std::max(most, length);
    }
    if (least == most) return most;
    // Some class has less: from there, all of them again.
    close(sequence);
    [[maybe_unused]] const auto again = open();
    assert(again == sequence);
    limit = least;
  }
}

void SequenceMemory::forget(std::uint64_t owner) {
  for (const auto& c : classes_) c->forget(owner);
}

bool SequenceMemory::reserve(KvSequence sequence, std::int64_t length) {
  return std::ranges::all_of(classes_, [&](const auto& c) { return c->reserve(sequence, length); });
}

void SequenceMemory::commit(KvSequence sequence, std::int64_t length) {
  for (const auto& c : classes_) c->commit(sequence, length);
}

void SequenceMemory::keep_path(KvSequence sequence, std::int64_t first_position,
                               std::span<const int> path) {
  for (const auto& c : classes_) c->keep_path(sequence, first_position, path);
}

std::int64_t SequenceMemory::capacity_tokens() const {
  std::int64_t least = classes_.front()->capacity_tokens();
  for (const auto& c : classes_) least = std::min(least, c->capacity_tokens());
  return least;
}

KvStats SequenceMemory::stats() const {
  KvStats sum;
  for (const auto& c : classes_) {
    const KvStats s = c->stats();
    sum.pool_bytes += s.pool_bytes;
    sum.used_bytes += s.used_bytes;
    sum.cached_bytes += s.cached_bytes;
    sum.hot_pages += s.hot_pages;
    sum.sealed_pages += s.sealed_pages;
    sum.cached_pages += s.cached_pages;
    sum.tails += s.tails;
    sum.tail_bytes += s.tail_bytes;
    sum.evicted_pages_total += s.evicted_pages_total;
    sum.evicted_tails_total += s.evicted_tails_total;
    sum.sealed_pages_total += s.sealed_pages_total;
    sum.sealed_page_reads_total += s.sealed_page_reads_total;
    sum.bytes_per_token_bf16 += s.bytes_per_token_bf16;
    sum.bytes_per_token_sealed += s.bytes_per_token_sealed;
  }
  return sum;
}

std::string SequenceMemory::validate() const {
  for (const auto& c : classes_) {
    if (std::string error = c->validate(); !error.empty()) return error;
  }
  return {};
}

}  // namespace foretoken
