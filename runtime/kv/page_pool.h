// The memory of a KV cache as the host keeps account of it, wherever the bytes are (kv_pages.h):
// one stretch cut into equal chunks, each free or split into slabs of one kind (a slab is one page
// of all layers and KV heads: hot, in 16 bits, or sealed). Slabs are counted by reference:
// sequences and the prefix index share what has the same content, and a slab nobody holds is free
// at once. Equal chunks serve either kind; what is free inside half-used chunks can be gathered
// (compact()), so that whatever fits by its bytes fits. Engine thread. Invariant: a chunk is free
// <=> none of its slabs has a reference.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace foretoken {

enum class SlabKind : std::uint8_t { kHot, kSealed };
using Slab = std::int32_t;  // of its kind: chunk * slabs per chunk + index inside it
inline constexpr Slab kNoSlab = -1;
inline constexpr std::array kSlabKinds = {SlabKind::kHot, SlabKind::kSealed};

class PagePool {
 public:
  PagePool(std::size_t hot_bytes, std::size_t sealed_bytes, std::size_t pool_bytes);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // A chunk holds one hot slab or several sealed ones: 7 of INT2 at head_dim 128, where 7.1 would
  // fit, and at 64. Most pages of a long context are sealed, so it is a little larger than a hot
  // slab (by a tenth at most) where one more sealed slab fits then.
  static std::size_t chunk_bytes(std::size_t hot_bytes, std::size_t sealed_bytes);

  std::size_t bytes() const { return chunk_bytes_ * std::size_t(n_chunks_); }
  // Where its bytes are; null: nowhere, so that there are no slabs. Before the first take().
  void place(std::byte* base) { base_ = base; }
  bool ok() const { return base_ != nullptr; }
  int n_chunks() const { return n_chunks_; }
  int n_free() const { return int(free_.size()); }
  std::size_t chunk_bytes() const { return chunk_bytes_; }
  int per_chunk(SlabKind kind) const { return of(kind).per_chunk; }
  int n_slabs(SlabKind kind) const { return n_chunks_ * of(kind).per_chunk; }
  std::int64_t in_use(SlabKind kind) const { return of(kind).in_use; }
  int chunk_of(SlabKind kind, Slab slab) const { return slab / of(kind).per_chunk; }
  std::byte* at(SlabKind kind, Slab slab) const {
    const Kind& k = of(kind);
    return base_ + std::size_t(slab / k.per_chunk) * chunk_bytes_ +
           std::size_t(slab % k.per_chunk) * k.bytes;
  }

  // So many more slabs can be taken now.
  bool fits(int hot, int sealed) const {
    return chunks_for(SlabKind::kHot, hot) + chunks_for(SlabKind::kSealed, sealed) <= n_free();
  }
  Slab take(SlabKind kind);  // one reference; fits() must have said so
  void share(SlabKind kind, Slab slab) { ++of(kind).refs[std::size_t(slab)]; }
  void drop(SlabKind kind, Slab slab);  // the last reference frees it
  int refs(SlabKind kind, Slab slab) const { return of(kind).refs[std::size_t(slab)]; }

  // Frees one chunk by moving its slabs into the holes of others of its kind; moved(kind, from, to)
  // is called for each and copies the bytes. False: no kind has that many holes.
  template <class Moved>
  bool compact(Moved&& moved) {
    for (const SlabKind kind : kSlabKinds) {
      const Kind& k = of(kind);
      if (k.holes < k.per_chunk) continue;
      const int chunk = emptiest(kind);
      for (int i = 0; i < k.per_chunk; ++i) {
        const Slab from = chunk * k.per_chunk + i;
        if (refs(kind, from) > 0) moved(kind, from, move_elsewhere(kind, from));
      }
      return true;
    }
    return false;
  }

  // For tests: empty if chunks and slabs account for one another and for `holders`, the number of
  // references known to exist of each slab of each kind.
  const char* validate(const std::array<std::vector<int>, 2>& holders) const;

 private:
  struct Kind {
    std::size_t bytes = 0;
    int per_chunk = 1;
    std::vector<std::int32_t> refs;      // [n_slabs]
    std::vector<int> partial;            // chunks of this kind with a free slab
    std::vector<std::int32_t> place;     // [n_chunks] index in partial, -1: not there
    std::int64_t in_use = 0, holes = 0;  // holes: free slabs in chunks of this kind
  };
  Kind& of(SlabKind kind) { return kinds_[std::size_t(kind)]; }
  const Kind& of(SlabKind kind) const { return kinds_[std::size_t(kind)]; }
  int chunks_for(SlabKind kind, int n) const {
    const Kind& k = of(kind);
    const std::int64_t more = n - k.holes;
    return more <= 0 ? 0 : int((more + k.per_chunk - 1) / k.per_chunk);
  }
  void list(Kind& k, int chunk);
  void unlist(Kind& k, int chunk);
  Slab take_in(Kind& k, int chunk);
  int emptiest(SlabKind kind) const;
  Slab move_elsewhere(SlabKind kind, Slab from);

  std::byte* base_ = nullptr;
  std::size_t chunk_bytes_;
  int n_chunks_;
  std::array<Kind, 2> kinds_;
  std::vector<std::int32_t> used_;  // [n_chunks] slabs in use
  std::vector<int> free_;           // chunks
};

}  // namespace foretoken
