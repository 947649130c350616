#include "runtime/kv/page_pool.h"

#include <algorithm>

namespace foretoken {

std::size_t PagePool::chunk_bytes(std::size_t hot_bytes, std::size_t sealed_bytes) {
  const std::size_t one_more = (hot_bytes + sealed_bytes - 1) / sealed_bytes * sealed_bytes;
  return one_more <= hot_bytes + hot_bytes / 10 ? one_more : hot_bytes;
}

PagePool::PagePool(std::size_t hot_bytes, std::size_t sealed_bytes, std::size_t pool_bytes)
    : chunk_bytes_(chunk_bytes(hot_bytes, sealed_bytes)),
      n_chunks_(int(pool_bytes / chunk_bytes_)) {
  const int n_chunks = n_chunks_;
  kinds_[0].bytes = hot_bytes;
  kinds_[1].bytes = sealed_bytes;
  kinds_[0].per_chunk = 1;
  kinds_[1].per_chunk = int(chunk_bytes_ / sealed_bytes);
  for (Kind& k : kinds_) {
    k.refs.assign(std::size_t(n_chunks) * std::size_t(k.per_chunk), 0);
    k.partial.reserve(std::size_t(n_chunks));
    k.place.assign(std::size_t(n_chunks), -1);
  }
  used_.assign(std::size_t(n_chunks), 0);
  free_.reserve(std::size_t(n_chunks));
  for (int i = n_chunks - 1; i >= 0; --i)
    free_.push_back(i);  // low chunks first: touched memory stays small
}

void PagePool::list(Kind& k, int chunk) {
  k.place[std::size_t(chunk)] = std::int32_t(k.partial.size());
  k.partial.push_back(chunk);
}

void PagePool::unlist(Kind& k, int chunk) {
  std::int32_t& place = k.place[std::size_t(chunk)];
  k.partial[std::size_t(place)] = k.partial.back();
  k.place[std::size_t(k.partial.back())] = place;
  k.partial.pop_back();
  place = -1;
}

Slab PagePool::take_in(Kind& k, int chunk) {
  Slab slab = chunk * k.per_chunk;
  while (k.refs[std::size_t(slab)] != 0) ++slab;
  k.refs[std::size_t(slab)] = 1;
  ++k.in_use;
  --k.holes;
  if (++used_[std::size_t(chunk)] == k.per_chunk) unlist(k, chunk);
  return slab;
}

Slab PagePool::take(SlabKind kind) {
  Kind& k = of(kind);
  if (k.partial.empty()) {
    list(k, free_.back());
    free_.pop_back();
    k.holes += k.per_chunk;
  }
  return take_in(k, k.partial.back());
}

void PagePool::drop(SlabKind kind, Slab slab) {
  Kind& k = of(kind);
  if (--k.refs[std::size_t(slab)] > 0) return;
  const int chunk = slab / k.per_chunk;
  --k.in_use;
  ++k.holes;
  if (k.place[std::size_t(chunk)] < 0) list(k, chunk);
  if (--used_[std::size_t(chunk)] > 0) return;
  unlist(k, chunk);
  k.holes -= k.per_chunk;
  free_.push_back(chunk);
}

int PagePool::emptiest(SlabKind kind) const {
  const Kind& k = of(kind);
  return *std::ranges::min_element(k.partial, {},
                                   [&](int chunk) { return used_[std::size_t(chunk)]; });
}

Slab PagePool::move_elsewhere(SlabKind kind, Slab from) {
  Kind& k = of(kind);
  const int chunk = from / k.per_chunk;
  const int target = k.partial.back() != chunk ? k.partial.back() : k.partial.front();
  const Slab to = take_in(k, target);
  std::int32_t& refs = k.refs[std::size_t(from)];
  k.refs[std::size_t(to)] = refs;
  refs = 1;
  drop(kind, from);
  return to;
}

const char* PagePool::validate(const std::array<std::vector<int>, 2>& holders) const {
  std::vector<int> users(static_cast<std::size_t>(n_chunks_), 0);
  std::vector<int> kind_of(static_cast<std::size_t>(n_chunks_), -1);
  for (int kind = 0; kind < 2; ++kind) {
    const Kind& k = kinds_[std::size_t(kind)];
    std::int64_t in_use = 0;
    for (std::size_t slab = 0; slab < k.refs.size(); ++slab) {
      if (k.refs[slab] != holders[std::size_t(kind)][slab])
        return kind == 0 ? "a hot slab's references are miscounted"
                         : "a sealed slab's references are miscounted";
      if (k.refs[slab] == 0) continue;
      ++in_use;
      const std::size_t chunk = slab / std::size_t(k.per_chunk);
      ++users[chunk];
      if (kind_of[chunk] >= 0 && kind_of[chunk] != kind) return "a chunk holds slabs of both kinds";
      kind_of[chunk] = kind;
    }
    if (in_use != k.in_use) return "slabs in use are miscounted";
    std::int64_t holes = 0;
    for (const int chunk : k.partial) {
      holes += k.per_chunk - used_[std::size_t(chunk)];
      if (users[std::size_t(chunk)] == 0) return "a listed chunk is empty";
    }
    if (holes != k.holes) return "holes are miscounted";
  }
  std::size_t used_chunks = 0;
  for (std::size_t chunk = 0; chunk < users.size(); ++chunk) {
    if (users[chunk] != used_[chunk]) return "a chunk's slabs are miscounted";
    used_chunks += users[chunk] > 0;
  }
  for (const int chunk : free_) {
    if (users[std::size_t(chunk)] != 0) return "a free chunk is in use";
  }
  return free_.size() + used_chunks == users.size() ? nullptr : "a chunk is lost";
}

}  // namespace foretoken
