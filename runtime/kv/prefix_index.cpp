#include "runtime/kv/prefix_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>

namespace foretoken {

PrefixIndex::PrefixIndex(PagePool& pool, const PrefixIndexOptions& options)
    : pool_(pool), options_(options) {
  // Every node holds a slab of its own.
  const auto n = std::size_t(
      options.seals ? std::max(pool.n_slabs(SlabKind::kHot), pool.n_slabs(SlabKind::kSealed))
                    : pool.n_slabs(SlabKind::kHot));
  nodes_.reserve(n);  // touched as it fills
  buckets_.assign(std::bit_ceil(n + 1), -1);
  tails_.reserve(n);
  path_.reserve(n);
}

PrefixIndex::NodeId& PrefixIndex::bucket_of(const PageHash& hash) {
  std::uint64_t key;
  std::memcpy(&key, hash.data(), sizeof key);
  return buckets_[std::size_t(key) & (buckets_.size() - 1)];
}

PrefixIndex::NodeId PrefixIndex::find(const PageHash& hash) const {
  NodeId id = const_cast<PrefixIndex*>(this)->bucket_of(hash);
  while (id >= 0 && at(id).hash != hash) id = at(id).next_in_bucket;
  return id;
}

std::span<const PrefixIndex::NodeId> PrefixIndex::match(std::span<const PageHash> pages) {
  path_.clear();
  for (const PageHash& hash : pages) {
    const NodeId id = find(hash);
    if (id < 0) break;
    path_.push_back(id);
  }
  return path_;
}

int PrefixIndex::first_hot(std::span<const NodeId> path, int border) const {
  if (!options_.seals) return 0;
  int first = std::max(options_.sink_pages, border - options_.window_pages);
  while (first > options_.sink_pages && first <= border &&
         at(path[std::size_t(first - 1)]).page.sealed == kNoSlab)
    --first;
  return first;
}

int PrefixIndex::resumable(std::span<const NodeId> path, int limit) const {
  for (int border = std::min(limit, int(path.size())); border > 0; --border) {
    bool held = true;
    for (int p = first_hot(path, border); p < border && held; ++p)
      held = at(path[std::size_t(p)]).page.hot != kNoSlab;
    if (held) return border;
  }
  return 0;
}

void PrefixIndex::unlink(NodeId id) {
  Node& node = at(id);
  (node.before >= 0 ? at(node.before).after : newest_) = node.after;
  (node.after >= 0 ? at(node.after).before : oldest_) = node.before;
  node.before = node.after = -1;
}

void PrefixIndex::link(NodeId id) {
  at(id).after = newest_;
  if (newest_ >= 0) at(newest_).before = id;
  newest_ = id;
  if (oldest_ < 0) oldest_ = id;
}

void PrefixIndex::to_front(NodeId id) {
  if (newest_ == id) return;
  unlink(id);
  link(id);
}

void PrefixIndex::used(std::span<const NodeId> path) {
  if (path.empty()) return;
  at(path.back()).tail_used = ++clock_;
  for (std::size_t i = path.size(); i-- > 0;) to_front(path[i]);
}

PrefixIndex::NodeId PrefixIndex::make(const PageHash& hash, NodeId parent, int depth,
                                      std::uint64_t owner) {
  NodeId id = free_;
  if (id >= 0) {
    free_ = at(id).next_in_bucket;
  } else {
    id = NodeId(nodes_.size());
    nodes_.emplace_back();
  }
  Node& node = at(id);
  node = {};
  node.hash = hash;
  node.parent = parent;
  node.depth = depth;
  node.owner = owner;
  node.alive = true;
  NodeId& bucket = bucket_of(hash);
  node.next_in_bucket = bucket;
  bucket = id;
  link(id);
  if (parent >= 0) ++at(parent).children;
  ++n_nodes_;
  return id;
}

void PrefixIndex::add(std::span<const PageHash> pages, std::span<const Page> sequence,
                      std::span<const Tail> tails, std::uint64_t owner) {
  path_.clear();
  NodeId parent = -1;
  const std::size_t n = std::min(pages.size(), sequence.size());
  for (std::size_t p = 0; p < n; ++p) {
    const int depth = int(p);
    const SlabKind kind = content_of(depth);
    const Slab content = sequence[p].of(kind);
    NodeId id = find(pages[p]);
    const bool covered = std::ranges::any_of(
        tails, [&](const Tail& t) { return t.first <= depth && depth < t.border; });
    if (content == kNoSlab && !covered && (id < 0 || holds_nothing(at(id)))) break;
    if (id < 0) id = make(pages[p], parent, depth, owner);
    if (Slab& held = at(id).page.of(kind); content != kNoSlab && held == kNoSlab) {
      pool_.share(kind, content);
      held = content;
    }
    path_.push_back(id);
    parent = id;
  }
  for (const Tail& tail : tails) keep_tail(path_, sequence, tail);
  for (std::size_t i = path_.size(); i-- > 0;) to_front(path_[i]);
  while (tail_slabs_ > options_.tail_slabs) evict_tail();
}

void PrefixIndex::evict_tail() {
  const NodeId id =
      *std::ranges::min_element(tails_, {}, [&](NodeId t) { return at(t).tail_used; });
  ++evicted_tails_;
  drop_tail(id);
  remove_hollow(id);
}

void PrefixIndex::keep_tail(std::span<const NodeId> path, std::span<const Page> sequence,
                            Tail tail) {
  if (!options_.seals || tail.border <= 0 || tail.border > int(path.size())) return;
  const NodeId end = path[std::size_t(tail.border - 1)];
  at(end).tail_used = ++clock_;
  if (at(end).tail_first >= 0) return;  // the same values
  for (int p = tail.first; p < tail.border; ++p) {
    Node& node = at(path[std::size_t(p)]);
    ++node.covering;
    if (node.page.hot != kNoSlab) continue;
    const Slab hot = sequence[std::size_t(p)].hot;
    assert(hot != kNoSlab);
    pool_.share(SlabKind::kHot, hot);
    node.page.hot = hot;
    ++tail_slabs_;
  }
  at(end).tail_first = tail.first;
  at(end).tail_place = std::int32_t(tails_.size());
  tails_.push_back(end);
}

void PrefixIndex::drop_tail(NodeId id) {
  const int first = at(id).tail_first;
  if (first < 0) return;
  at(id).tail_first = -1;
  at(tails_.back()).tail_place = at(id).tail_place;
  tails_[std::size_t(at(id).tail_place)] = tails_.back();
  tails_.pop_back();
  at(id).tail_place = -1;
  for (NodeId n = id; n >= 0 && at(n).depth >= first; n = at(n).parent) {
    Node& node = at(n);
    if (--node.covering > 0 || content_is_hot(node.depth)) continue;
    pool_.drop(SlabKind::kHot, node.page.hot);
    node.page.hot = kNoSlab;
    --tail_slabs_;
  }
}

void PrefixIndex::remove(NodeId leaf) {
  drop_tail(leaf);
  Node& node = at(leaf);
  assert(node.children == 0 && node.covering == 0);
  for (const SlabKind kind : kSlabKinds)
    if (const Slab slab = node.page.of(kind); slab != kNoSlab) pool_.drop(kind, slab);
  NodeId* link = &bucket_of(node.hash);
  while (*link != leaf) link = &at(*link).next_in_bucket;
  *link = node.next_in_bucket;
  unlink(leaf);
  if (node.parent >= 0) --at(node.parent).children;
  const NodeId parent = node.parent;
  node = {};
  node.next_in_bucket = free_;
  free_ = leaf;
  --n_nodes_;
  remove_hollow(parent);
}

void PrefixIndex::remove_hollow(NodeId leaf) {
  if (leaf >= 0 && at(leaf).children == 0 && holds_nothing(at(leaf))) remove(leaf);
}

// By somebody besides the index itself.
bool PrefixIndex::in_use(const Node& node) const {
  return std::ranges::any_of(kSlabKinds, [&](SlabKind kind) {
    const Slab slab = node.page.of(kind);
    return slab != kNoSlab && pool_.refs(kind, slab) > 1;
  });
}

bool PrefixIndex::evict() {
  for (NodeId id = oldest_; id >= 0; id = at(id).before) {
    if (at(id).children > 0 || in_use(at(id))) continue;
    const std::int64_t pages = n_nodes_;
    const std::int64_t tails = n_tails();
    remove(id);
    evicted_pages_ += pages - n_nodes_;
    evicted_tails_ += tails - n_tails();
    return true;
  }
  if (tails_.empty()) return false;
  evict_tail();
  return true;
}

void PrefixIndex::forget(std::uint64_t owner) {
  // Deepest first, so that everything that follows on a forgotten page goes before it.
  std::vector<NodeId> doomed;
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    for (NodeId n = NodeId(i); n >= 0 && nodes_[i].alive; n = at(n).parent) {
      if (at(n).owner != owner) continue;
      doomed.push_back(NodeId(i));
      break;
    }
  }
  std::ranges::sort(doomed, std::greater{}, [&](NodeId id) { return at(id).depth; });
  for (const NodeId id : doomed) {
    if (at(id).alive) remove(id);
  }
}

void PrefixIndex::moved(SlabKind kind, Slab from, Slab to) {
  for (Node& node : nodes_) {
    if (Slab& slab = node.page.of(kind); node.alive && slab == from) slab = to;
  }
}

std::string PrefixIndex::validate(std::array<std::vector<int>, 2>& holders) const {
  std::vector<int> children(nodes_.size(), 0), covering(nodes_.size(), 0);
  std::int64_t alive = 0, tail_slabs = 0, tails = 0;
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (!node.alive) continue;
    ++alive;
    if (node.parent >= 0) {
      ++children[std::size_t(node.parent)];
      if (!at(node.parent).alive || at(node.parent).depth + 1 != node.depth)
        return fmt::format("node {} hangs in the air", i);
    }
    if (find(node.hash) != NodeId(i)) return fmt::format("node {} is not found", i);
    if (node.page.hot != kNoSlab) ++holders[0][std::size_t(node.page.hot)];
    if (node.page.sealed != kNoSlab) ++holders[1][std::size_t(node.page.sealed)];
    tail_slabs += node.page.hot != kNoSlab && !content_is_hot(node.depth);
    if (node.tail_first < 0) continue;
    ++tails;
    if (tails_[std::size_t(node.tail_place)] != NodeId(i))
      return fmt::format("the tail at node {} is not listed", i);
    for (NodeId n = NodeId(i); n >= 0 && at(n).depth >= node.tail_first; n = at(n).parent) {
      ++covering[std::size_t(n)];
      if (at(n).page.hot == kNoSlab) return fmt::format("the tail at node {} has a hole", i);
    }
  }
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (!node.alive) continue;
    if (children[i] != node.children) return fmt::format("node {}: children miscounted", i);
    if (covering[i] != node.covering) return fmt::format("node {}: tails miscounted", i);
    if (node.children == 0 && holds_nothing(node))
      return fmt::format("node {} is an empty leaf", i);
    const bool parent_sealed = node.parent < 0 || content_is_hot(at(node.parent).depth) ||
                               at(node.parent).page.sealed != kNoSlab;
    if (node.page.sealed != kNoSlab && !parent_sealed)
      return fmt::format("node {} is sealed after one that is not", i);
  }
  std::int64_t listed = 0;
  for (NodeId id = newest_, before = -1; id >= 0; before = id, id = at(id).after) {
    if (at(id).before != before || ++listed > alive) return "the list by use is broken";
  }
  if (alive != n_nodes_ || listed != alive || tails != n_tails() || tail_slabs != tail_slabs_)
    return fmt::format("{} pages, {} listed, {} tails of {} slabs; counted {}, {}, {}", alive,
                       listed, tails, tail_slabs, n_nodes_, n_tails(), tail_slabs_);
  if (tail_slabs > options_.tail_slabs)
    return fmt::format("tails hold {} slabs of {}", tail_slabs, options_.tail_slabs);
  return {};
}

}  // namespace foretoken
