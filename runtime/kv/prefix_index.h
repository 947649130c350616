// What a KV cache keeps of sequences that have ended, so that a prompt with a known beginning need
// not be computed again: a forest of pages by content (page_hash.h), each a node under the page
// before it. Example: after "manual + question A", a request "manual + question B" finds the
// manual's pages. A node holds its page's slab: the sealed one (few bits), or the 16-bit hot one of
// sink pages and where nothing seals. But rows after a page border read the last `window` pages
// before it in 16 bits, and sealed pages do not give those back. So a sequence resumes only at a
// border whose *tail*, the hot slabs of those pages, is held too (it *covers* them). Tails have a
// budget of slabs: the one used longest ago goes first; of the nodes, the leaf used longest ago.
// Engine thread; nothing allocates after construction, forget() aside. Invariants: a node was used
// no earlier than its children; on a path, sealed pages come before unsealed ones; a leaf has
// content or a tail.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/kv/page_hash.h"
#include "runtime/kv/page_pool.h"

namespace foretoken {

struct PrefixIndexOptions {
  int sink_pages = 0, window_pages = 0;
  bool seals = true;   // false: every page's content is its hot slab, and every border has its tail
  int tail_slabs = 0;  // the tails' budget
};

class PrefixIndex {
 public:
  PrefixIndex(PagePool& pool, const PrefixIndexOptions& options);

  using NodeId = std::int32_t;
  struct Page {  // of a node or of a sequence: kNoSlab where there is none
    Slab hot = kNoSlab, sealed = kNoSlab;
    Slab& of(SlabKind kind) { return kind == SlabKind::kHot ? hot : sealed; }
    Slab of(SlabKind kind) const { return kind == SlabKind::kHot ? hot : sealed; }
  };

  // The longest known beginning of `pages`, as nodes in order; valid until the next change.
  std::span<const NodeId> match(std::span<const PageHash> pages);
  // The last page border, in pages and at most `limit`, at which a sequence could resume on `path`:
  // the pages before it have what the rows after it read.
  int resumable(std::span<const NodeId> path, int limit) const;
  // On that path, the first page that a sequence resuming at `border` holds in 16 bits (sink pages
  // aside): the window's first, or an earlier one that nobody sealed yet.
  int first_hot(std::span<const NodeId> path, int border) const;
  Page page(NodeId node) const { return nodes_[std::size_t(node)].page; }
  void used(std::span<const NodeId> path);  // just now

  // A tail to keep: the 16-bit copies of the pages [first, border).
  struct Tail {
    int first = 0, border = 0;
  };
  // Adds a sequence's pages: sequence[p] of page pages[p]. Stops before the first page that has
  // neither content nor a tail. The index takes references of its own.
  void add(std::span<const PageHash> pages, std::span<const Page> sequence,
           std::span<const Tail> tails, std::uint64_t owner);

  // Makes room: the least recently used leaf that nobody uses goes, else the least recently used
  // tail (its copies may be all that the index still holds of pages in use). False: neither is
  // left.
  bool evict();
  void forget(std::uint64_t owner);  // that owner's pages and what follows on them
  // The slab's bytes moved (PagePool::compact).
  void moved(SlabKind kind, Slab from, Slab to);

  std::int64_t n_pages() const { return n_nodes_; }
  std::int64_t n_tails() const { return std::int64_t(tails_.size()); }
  std::int64_t tail_slabs() const { return tail_slabs_; }
  std::int64_t evicted_pages() const { return evicted_pages_; }
  std::int64_t evicted_tails() const { return evicted_tails_; }

  // For tests: empty if links, counts and budget hold; adds the references held to `holders`.
  std::string validate(std::array<std::vector<int>, 2>& holders) const;

 private:
  struct Node {
    PageHash hash{};
    NodeId parent = -1;      // -1: a first page
    std::int32_t depth = 0;  // which page of its sequence
    std::int32_t children = 0;
    std::int32_t covering = 0;     // tails that cover this page
    std::int32_t tail_first = -1;  // >= 0: a tail [tail_first, depth + 1) ends here
    std::int32_t tail_place = -1;  // index in tails_
    Page page;
    std::uint64_t owner = 0;
    std::uint64_t tail_used = 0;
    NodeId before = -1, after = -1;  // by last use, the most recent first
    NodeId next_in_bucket = -1;      // or next free
    bool alive = false;
  };
  Node& at(NodeId id) { return nodes_[std::size_t(id)]; }
  const Node& at(NodeId id) const { return nodes_[std::size_t(id)]; }
  NodeId& bucket_of(const PageHash& hash);
  NodeId find(const PageHash& hash) const;
  bool content_is_hot(int depth) const { return !options_.seals || depth < options_.sink_pages; }
  SlabKind content_of(int depth) const {
    return content_is_hot(depth) ? SlabKind::kHot : SlabKind::kSealed;
  }
  bool holds_nothing(const Node& node) const {
    return node.page.hot == kNoSlab && node.page.sealed == kNoSlab;
  }
  bool in_use(const Node& node) const;
  void link(NodeId id);  // in front
  void to_front(NodeId id);
  void unlink(NodeId id);
  void evict_tail();
  void remove(NodeId leaf);         // and its tail
  void remove_hollow(NodeId leaf);  // upwards, as long as nothing is left of them
  void drop_tail(NodeId id);        // its cover; nodes that hold nothing may remain
  void keep_tail(std::span<const NodeId> path, std::span<const Page> sequence, Tail tail);
  NodeId make(const PageHash& hash, NodeId parent, int depth, std::uint64_t owner);

  PagePool& pool_;
  PrefixIndexOptions options_;
  std::vector<Node> nodes_;
  std::vector<NodeId> buckets_;
  NodeId free_ = -1;
  NodeId newest_ = -1, oldest_ = -1;
  std::vector<NodeId> tails_, path_;
  std::uint64_t clock_ = 0;
  std::int64_t n_nodes_ = 0, tail_slabs_ = 0, evicted_pages_ = 0, evicted_tails_ = 0;
};

}  // namespace foretoken
