// Which pages a cache's sequences have, what of them is in 16 bits, sealed, shared or kept of ended
// ones (prefix_index.h), and where each lies in the pool (page_pool.h): everything of a KV cache
// but its bytes, which kv_pages.h has. Engine thread. Invariants: a page is sealed only from
// committed tokens, when a row first needs its codes, at a border fixed by absolute position; a
// sealed page is immutable; a rejected token is only ever overwritten in a hot page; a page's hot
// copy is released when no future row (position >= committed length) can read it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/kv/kv_pages.h"
#include "runtime/kv/page_hash.h"
#include "runtime/kv/page_pool.h"
#include "runtime/kv/prefix_index.h"

namespace foretoken {

struct KvOptions {
  KvMode mode = KvMode::kInt2;
  int sink_tokens = 64;          // multiples of 64
  int window_tokens = 256;       // at least 64
  std::size_t memory_bytes = 0;  // of the pool, hot and sealed slabs together
  int max_sequences = 8;
  int max_rows = 512;  // of one forward pass
  std::int64_t max_model_len = 0;
  // Of the pool, at most so much for tails of the prefix index (prefix_index.h) that nobody else
  // needs; in a mode that seals nothing there are none.
  std::size_t tail_bytes = 0;
};

struct KvStats {
  std::size_t pool_bytes = 0;
  std::size_t used_bytes = 0;    // by sequences, what they share with the index included
  std::size_t cached_bytes = 0;  // by the index alone: free for whoever needs it
  std::int64_t hot_pages = 0, sealed_pages = 0;  // slabs held, by whomever
  // The prefix index: its pages, its tails and what they take of their budget.
  std::int64_t cached_pages = 0, tails = 0;
  std::size_t tail_bytes = 0;
  std::int64_t evicted_pages_total = 0, evicted_tails_total = 0;
  std::int64_t sealed_pages_total = 0;  // ever
  // (row group, page) pairs attended to by their codes, layer 0, head 0
  std::int64_t sealed_page_reads_total = 0;
  double bytes_per_token_bf16 = 0, bytes_per_token_sealed = 0;  // all layers and heads
  double occupancy() const {                                    // 0 to 1
    return pool_bytes ? static_cast<double>(used_bytes) / static_cast<double>(pool_bytes) : 0.0;
  }
};

class PageTable {
 public:
  // pages: made for `layout`, outlives this.
  PageTable(const KvLayout& layout, const KvOptions& options, KvPages& pages);

  bool ok() const { return pool_.ok(); }  // false: the device has no such memory
  std::size_t chunk_bytes() const { return pool_.chunk_bytes(); }

  std::optional<KvSequence> open();  // nullopt: max_sequences are open
  void close(KvSequence sequence);   // frees its pages at once
  // A whole request's end: its committed pages enter the prefix index under the names in `chain`.
  void close_and_keep(KvSequence sequence, const PageChain& chain);
  // Takes over what the prefix index holds of a fresh sequence's beginning, up to the last page
  // border at or below `limit` whose tail is held, and returns that position (0: nothing): it is
  // committed, rows go on from there. Remembers to keep the tails of this prompt's last border and
  // of the border where it leaves what is known.
  std::int64_t resume(KvSequence sequence, const PageChain& chain, std::int64_t n_prompt,
                      std::int64_t limit);
  void forget(std::uint64_t owner);  // that owner's pages leave the index
  // Makes room for positions below `length`, if need be at the prefix index's cost. False: the pool
  // is full; the sequence is as it was. Some room is always kept so that an admitted sequence's
  // pages can be sealed.
  bool reserve(KvSequence sequence, std::int64_t length);
  // Positions below `length` are final. Monotone; rows may not start past it (a prefill commits
  // each chunk). Releases hot copies nobody will read.
  void commit(KvSequence sequence, std::int64_t length);
  std::int64_t committed(KvSequence sequence) const { return at(sequence).committed; }
  // Of the last pass's rows from first_position on, which were a tree: those of an accepted path,
  // path[0] = 0, ascending, become consecutive positions. Before commit().
  void keep_path(KvSequence sequence, std::int64_t first_position, std::span<const int> path);

  // Of a forward pass, layer by layer: that these rows may be stored is checked, and noted.
  void storing(int layer, std::span<const KvRows> rows);
  // The pages that these rows read sealed and that this layer has not sealed yet: they are from now
  // on. Valid until the next call.
  std::span<const KvPages::Page> sealing(int layer, std::span<const KvRows> rows);

  // The largest total of tokens one sequence could hold if it had the pool alone.
  std::int64_t capacity_tokens() const;
  KvStats stats() const;
  const KvOptions& options() const { return options_; }
  // For tests: empty if every reference into the pool is accounted for and every page has the
  // copies it should have (debug builds check it after every call).
  std::string validate() const;
  // Whether a page has been sealed in a layer.
  bool sealed(KvSequence sequence, int page, int layer) const {
    return page < layout_.max_pages && at(sequence).sealed_layers[std::size_t(page)] > layer;
  }

 private:
  // The 16-bit copies of a sequence's pages [first, border), kept back for the index while it goes
  // on.
  struct KeptTail {
    int border = 0, first = 0;
    bool reached = false;  // the border was committed, the copies are held
  };
  struct Sequence {
    KvSequence handle = 0;
    bool open = false;
    std::int64_t committed = 0;
    // End of the last forward pass's rows: a draft model goes on from there.
    std::int64_t stored = 0;
    int n_pages = 0;     // pages with positions below the reserved length
    int first_hot = 0;   // of pages [sink, first_hot) only kept tails have a hot copy
    int n_sealable = 0;  // pages [sink, sink + n_sealable) have their sealed slab
    std::vector<PrefixIndex::Page> pages;  // [max_pages] slabs held
    std::vector<int> sealed_layers;        // [max_pages] layers sealed so far: 0 .. n_layers
    std::array<KeptTail, 2> tails;  // of the prompt's last border, and where it left a known path
    int n_tails = 0;
  };

  Sequence& sequence(KvSequence handle);
  const Sequence& at(KvSequence handle) const { return sequences_[std::size_t(handle)]; }
  std::byte* address(SlabKind kind, Slab slab) const;
  void hold(Sequence& s, SlabKind kind, int page, Slab slab);
  void share(Sequence& s, SlabKind kind, int page, Slab slab);
  void drop(Sequence& s, SlabKind kind, int page);
  bool make_room(int hot, int sealed);
  bool gather();
  bool drop_kept_tail();
  int first_unsealed(const Sequence& s) const;
  int tail_start(const Sequence& s, int border) const;
  static bool in_kept_tail(const Sequence& s, int page);
  void count_sealed_reads(const KvRows& r);
  void debug_validate() const;

  const KvLayout layout_;
  const KvOptions options_;
  const bool seals_;
  const int sink_pages_, window_pages_, n_layers_;
  KvPages& pages_;
  PagePool pool_;
  PrefixIndex index_;
  std::vector<Sequence> sequences_;
  KvStats stats_;
  std::vector<KvPages::Page> to_seal_;
};

}  // namespace foretoken
