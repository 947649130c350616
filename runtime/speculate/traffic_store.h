// The n-gram store of recent traffic: for each context of 2, 3 and 4 tokens, its most frequent
// continuations, counted over prompts and outputs of whole finished requests. Bounded memory, fixed
// at creation: a set-associative table whose least used entries age (their counts halve) and make
// room. Deterministic: the same requests in the same order give the same store, byte for byte.
// Owned and called by the engine thread. add() costs about a third of a microsecond a token; find()
// three cache misses. Nothing here allocates after creation, save() aside.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/bounded_vector.h"
#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"

namespace foretoken {

class TrafficStore {
 public:
  static constexpr int kMinOrder = 2, kMaxOrder = 4;  // tokens of context

  struct Continuation {
    TokenId token = 0;
    std::uint32_t count = 0;  // of this continuation
    std::uint32_t total = 0;  // of its context, all continuations
  };
  // The two most frequent continuations of a context, most frequent first, the more recent on ties.
  using Continuations = BoundedVector<Continuation, 2>;

  explicit TrafficStore(std::size_t max_bytes);
  TrafficStore(TrafficStore&&) = default;
  TrafficStore& operator=(TrafficStore&&) = default;

  void add(std::span<const TokenId> tokens);  // one finished request: prompt and output
  void clear();

  // context: the last `order` tokens are used; empty if there are fewer, or it was never seen.
  Continuations find(std::span<const TokenId> context, int order) const;

  std::int64_t entries() const { return entries_; }
  std::int64_t requests() const { return requests_; }
  std::int64_t tokens() const { return tokens_; }
  std::size_t bytes() const { return n_buckets_ * sizeof(Bucket); }

  // For the state directory. restore() takes bytes as hostile: magic, version, sizes, checksum,
  // every index, count and token (0 <= token < n_vocab) are checked, and on error the store is left
  // as it was. A store saved at another size is refused by name (kUnsupported): the caller starts
  // empty.
  std::vector<std::byte> save() const;
  Status restore(std::span<const std::byte> bytes, std::int64_t n_vocab);

 private:
  static constexpr int kWays = 4;
  static constexpr int kContinuations =
      4;  // two are served; two more so that a newcomer can overtake
  // 32 bytes: two to a cache line. Invariants: total == 0 iff free; counts descending, unused ones
  // 0; sum of counts <= total.
  struct Entry {
    std::uint32_t tag = 0;
    std::uint32_t total = 0;
    std::array<TokenId, kContinuations> tokens{};
    std::array<std::uint16_t, kContinuations> counts{};
  };
  struct alignas(64) Bucket {
    std::array<Entry, kWays> ways;
  };
  static_assert(sizeof(Entry) == 32);

  Entry* find_or_make(std::uint64_t hash);
  static void count(Entry& entry, TokenId token);
  static void halve(Entry& entry);
  static bool valid(const Entry& entry, std::int64_t n_vocab);

  // Zero pages from the system, touched as traffic fills them: opening a store for a new key costs
  // the engine thread no memset.
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  static std::unique_ptr<void, Free> allocate(std::size_t n_buckets, Bucket** buckets);
  std::unique_ptr<void, Free> block_;
  Bucket* buckets_ = nullptr;  // [n_buckets_], inside block_
  std::size_t n_buckets_ = 0;
  std::uint64_t mask_ = 0;
  std::int64_t entries_ = 0, requests_ = 0, tokens_ = 0;
};

// One store for each API-key id, "" being the one shared by default. At most max_stores live; the
// least recently used one without open sequences makes room for a new key. Engine thread.
class TrafficStores {
 public:
  // max_stores must exceed the number of sequences that can be open at once.
  TrafficStores(std::size_t bytes_per_store, int max_stores);

  int acquire(std::string_view key_id);  // an index for DraftContext::store, pinned until release()
  void release(int store);
  TrafficStore& at(int store) { return *slots_[std::size_t(store)].store; }
  const TrafficStore& at(int store) const { return *slots_[std::size_t(store)].store; }
  bool forget(std::string_view key_id);  // empties the key's store; false: there is none

  std::vector<std::string> keys() const;
  std::int64_t entries() const;
  std::size_t bytes() const;

 private:
  struct Slot {
    std::string key_id;
    std::unique_ptr<TrafficStore> store;
    int pins = 0;
    std::uint64_t last_use = 0;
  };
  std::size_t bytes_per_store_;
  std::size_t max_stores_;
  std::vector<Slot> slots_;
  std::uint64_t clock_ = 0;
};

}  // namespace foretoken
