#include "runtime/kv/page_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <tuple>

#include "foretoken/kernels/kv_page.h"

namespace foretoken {
namespace {

using kernels::kPageTokens;

// A draft is at most 64 tokens: rows of one sequence beyond 1 + 64 are a
// prompt's, whose tokens are final.
constexpr int kMaxVerifyRows = 65;

// Bugs that would break law 2 silently stop the process in every build.
void check(bool condition, const char* what, std::int64_t a = 0, std::int64_t b = 0) {
  if (condition) return;
  std::fprintf(stderr, "kv cache: %s (%lld, %lld)\n", what, static_cast<long long>(a),
               static_cast<long long>(b));
  std::abort();
}

}  // namespace

PageTable::PageTable(const KvLayout& layout, const KvOptions& options, KvPages& pages)
    : layout_(layout),
      options_(options),
      seals_(layout.seals()),
      sink_pages_(layout.sink_pages),
      window_pages_(layout.window_pages),
      n_layers_(layout.geometry.n_layers),
      pages_(pages),
      pool_(layout.slab_bytes(SlabKind::kHot),
            layout.slab_bytes(seals_ ? SlabKind::kSealed : SlabKind::kHot), options.memory_bytes),
      index_(pool_, {.sink_pages = sink_pages_,
                     .window_pages = window_pages_,
                     .seals = seals_,
                     .tail_slabs = int(options.tail_bytes / pool_.chunk_bytes())}),
      sequences_(std::size_t(layout.max_sequences)) {
  pool_.place(pages.base(pool_.bytes()));
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    Sequence& s = sequences_[i];
    s.handle = KvSequence(i);
    s.pages.assign(std::size_t(layout.max_pages), {});
    s.sealed_layers.assign(std::size_t(layout.max_pages), 0);
  }
  to_seal_.reserve(sequences_.size() * std::size_t(layout.max_pages));
}

std::optional<KvSequence> PageTable::open() {
  for (int i = 0; i < int(sequences_.size()); ++i) {
    if (sequences_[i].open) continue;
    sequences_[i].open = true;
    return i;
  }
  return std::nullopt;
}

void PageTable::close(KvSequence handle) {
  Sequence& s = sequence(handle);
  for (int p = 0; p < s.n_pages; ++p) {
    drop(s, SlabKind::kHot, p);
    drop(s, SlabKind::kSealed, p);
    s.sealed_layers[p] = 0;
  }
  s.open = false;
  s.committed = s.stored = 0;
  s.n_pages = s.first_hot = s.n_sealable = s.n_tails = 0;
  debug_validate();
}

void PageTable::close_and_keep(KvSequence handle, const PageChain& chain) {
  Sequence& s = sequence(handle);
  const auto border =
      int(std::min<std::int64_t>(s.committed / kPageTokens, std::int64_t(chain.pages().size())));
  std::array<PrefixIndex::Tail, std::tuple_size_v<decltype(s.tails)> + 1> tails;
  std::size_t n_tails = 0;
  for (int i = 0; i < s.n_tails; ++i) {
    if (s.tails[i].reached) tails[n_tails++] = {s.tails[i].first, s.tails[i].border};
  }
  if (border == s.committed / kPageTokens) tails[n_tails++] = {tail_start(s, border), border};
  // What is not sealed in all layers is no content.
  for (int p = first_unsealed(s); p < s.n_pages; ++p) drop(s, SlabKind::kSealed, p);
  index_.add(chain.pages().first(std::size_t(border)),
             std::span(s.pages).first(std::size_t(border)), std::span(tails).first(n_tails),
             chain.owner());
  close(handle);
}

std::int64_t PageTable::resume(KvSequence handle, const PageChain& chain, std::int64_t n_prompt,
                               std::int64_t limit) {
  Sequence& s = sequence(handle);
  check(s.n_pages == 0 && s.committed == 0, "only a fresh sequence resumes", s.n_pages);
  const auto pages_of = [](std::int64_t tokens) { return int(tokens / kPageTokens); };
  const auto path = index_.match(chain.pages().first(
      std::min(chain.pages().size(), std::size_t(std::max(0, pages_of(limit))))));
  const int border = index_.resumable(path, int(path.size()));
  const auto taken = path.first(std::size_t(border));
  s.n_pages = border;
  s.committed = s.stored = std::int64_t(border) * kPageTokens;
  s.first_hot = index_.first_hot(path, border);
  for (int p = 0; p < border; ++p) {
    const PrefixIndex::Page page = index_.page(taken[std::size_t(p)]);
    if (p < sink_pages_ || p >= s.first_hot) {
      if (page.hot != kNoSlab) share(s, SlabKind::kHot, p, page.hot);
    }
    if (page.sealed == kNoSlab) continue;
    share(s, SlabKind::kSealed, p, page.sealed);
    s.sealed_layers[p] = n_layers_;
  }
  while (sink_pages_ + s.n_sealable < border &&
         s.pages[sink_pages_ + s.n_sealable].sealed != kNoSlab)
    ++s.n_sealable;
  index_.used(taken);
  // The prompt's last border, and the end of what was known where that is further than its tails.
  if (seals_ && options_.tail_bytes > 0) {
    for (const int wanted : {pages_of(std::min(n_prompt, limit)), int(path.size())}) {
      const bool twice = s.n_tails > 0 && s.tails[0].border == wanted;
      if (wanted > border && !twice) s.tails[s.n_tails++] = {.border = wanted};
    }
  }
  debug_validate();
  return s.committed;
}

void PageTable::forget(std::uint64_t owner) {
  index_.forget(owner);
  debug_validate();
}

bool PageTable::reserve(KvSequence handle, std::int64_t length) {
  Sequence& s = sequence(handle);
  if (length > options_.max_model_len) return false;
  const int pages = int((length + kPageTokens - 1) / kPageTokens);
  if (pages <= s.n_pages) return true;
  // Pages that a row below `length` reads sealed get their sealed slab now: sealing never
  // allocates.
  const int sealable = seals_ ? std::max(s.n_sealable, pages - 1 - window_pages_ - sink_pages_) : 0;
  int new_sealed = 0;
  for (int i = s.n_sealable; i < sealable; ++i)
    new_sealed += s.pages[sink_pages_ + i].sealed == kNoSlab;
  if (!make_room(pages - s.n_pages, new_sealed)) return false;
  for (; s.n_sealable < sealable; ++s.n_sealable) {
    const int p = sink_pages_ + s.n_sealable;
    if (s.pages[p].sealed == kNoSlab) hold(s, SlabKind::kSealed, p, pool_.take(SlabKind::kSealed));
  }
  for (; s.n_pages < pages; ++s.n_pages)
    hold(s, SlabKind::kHot, s.n_pages, pool_.take(SlabKind::kHot));
  debug_validate();
  return true;
}

void PageTable::commit(KvSequence handle, std::int64_t length) {
  Sequence& s = sequence(handle);
  check(length >= s.committed, "commit goes back", length, s.committed);
  check(length <= std::int64_t(s.n_pages) * kPageTokens, "commit past what is reserved", length,
        s.n_pages);
  s.committed = length;
  if (!seals_) return;
  // Before anything is released: every page that the last rows read is still here in 16 bits.
  for (int i = 0; i < s.n_tails; ++i) {
    KeptTail& tail = s.tails[i];
    if (tail.reached || length / kPageTokens < tail.border) continue;
    tail.first = tail_start(s, tail.border);
    tail.reached = true;
  }
  // Every row to come is at `length` or later: it reads page p sealed if p < length / 64 -
  // window.
  const std::int64_t read_sealed = length / kPageTokens - window_pages_;
  for (s.first_hot = std::max(s.first_hot, sink_pages_);
       s.first_hot < read_sealed && s.sealed_layers[s.first_hot] == n_layers_; ++s.first_hot) {
    if (!in_kept_tail(s, s.first_hot)) drop(s, SlabKind::kHot, s.first_hot);
  }
  debug_validate();
}

void PageTable::keep_path(KvSequence handle, std::int64_t first_position,
                          std::span<const int> path) {
  Sequence& s = sequence(handle);
  // Ascending, to a slot at or before a row's own: nothing that is still to move is overwritten.
  for (std::size_t i = 0; i < path.size(); ++i) {
    const std::int64_t to = first_position + std::int64_t(i);
    const std::int64_t from = first_position + path[i];
    check(from >= to && from < s.stored, "a path's row was not of the last pass", from, s.stored);
    check(from == to || to > s.committed, "a committed token would be overwritten", to);
    if (from != to) pages_.copy_position(handle, from, to);
  }
  s.stored = first_position + std::int64_t(path.size());
}

void PageTable::storing(int layer, std::span<const KvRows> rows) {
  for (const KvRows& r : rows) {
    Sequence& s = sequence(r.sequence);
    const std::int64_t end = r.first_position + r.n_rows;
    check(r.first_position <= std::max(s.committed, s.stored),
          "rows leave a gap after what is stored", r.first_position, s.stored);
    if (layer + 1 == n_layers_) s.stored = end;
    for (std::int64_t p = r.first_position / kPageTokens; p * kPageTokens < end; ++p) {
      check(p < s.n_pages && s.pages[p].hot != kNoSlab, "a row is stored where nothing is reserved",
            p);
      check(s.sealed_layers[p] <= layer, "a row is stored into a sealed page", p);
      check(pool_.refs(SlabKind::kHot, s.pages[p].hot) == 1, "a row is stored into a shared page",
            p);
    }
  }
}

// The last row's page decides for all of them: a page it reads sealed is final, and rows before it
// still find the 16-bit copy.
std::span<const KvPages::Page> PageTable::sealing(int layer, std::span<const KvRows> rows) {
  to_seal_.clear();
  if (!seals_) return {};
  for (const KvRows& r : rows) {
    Sequence& s = sequence(r.sequence);
    const std::int64_t last_page = r.last_position() / kPageTokens;
    const std::int64_t end = last_page - window_pages_;
    const std::int64_t final_length = r.n_rows > kMaxVerifyRows
                                          ? r.first_position + r.n_rows
                                          : std::max(s.committed, r.first_position + 1);
    for (std::int64_t p = std::max(s.first_hot, sink_pages_); p < end; ++p) {
      if (s.sealed_layers[p] > layer) continue;
      check(s.sealed_layers[p] == layer, "a page was sealed out of layer order", p, layer);
      check((p + 1) * kPageTokens <= final_length,
            "a page with tokens that are not final would be sealed", p, final_length);
      ++s.sealed_layers[p];
      if (layer + 1 == n_layers_) ++stats_.sealed_pages_total;
      check(pool_.refs(SlabKind::kSealed, s.pages[p].sealed) == 1,
            "a shared page would be sealed again", p);
      to_seal_.push_back({r.sequence, int(p)});
    }
    if (layer == 0) count_sealed_reads(r);
  }
  return to_seal_;
}

std::int64_t PageTable::capacity_tokens() const {
  const std::int64_t chunks = pool_.n_chunks();
  std::int64_t pages = chunks;
  if (seals_) {
    // At rest: sink, window and two partial pages hot, the rest sealed. What a prefill chunk
    // needs on top (its pages are hot until it is committed) comes off the capacity too.
    const std::int64_t hot =
        sink_pages_ + window_pages_ + 2 + (options_.max_rows + kPageTokens - 1) / kPageTokens;
    pages = chunks <= hot ? chunks : hot + (chunks - hot) * pool_.per_chunk(SlabKind::kSealed);
  }
  return std::min<std::int64_t>(pages * kPageTokens, options_.max_model_len);
}

KvStats PageTable::stats() const {
  KvStats stats = stats_;
  stats.pool_bytes = pool_.chunk_bytes() * pool_.n_chunks();
  // A chunk is used if a sequence holds any of its slabs; what only the index holds is there for
  // whoever needs it.
  std::vector<bool> used(std::size_t(pool_.n_chunks()), false);
  std::int64_t n_used = 0;
  const auto mark = [&](SlabKind kind, Slab slab) {
    if (slab == kNoSlab) return;
    const auto chunk = std::size_t(pool_.chunk_of(kind, slab));
    n_used += !used[chunk];
    used[chunk] = true;
  };
  for (const Sequence& s : sequences_) {
    for (int p = 0; p < s.n_pages; ++p) {
      mark(SlabKind::kHot, s.pages[p].hot);
      mark(SlabKind::kSealed, s.pages[p].sealed);
    }
  }
  const auto bytes = [&](std::int64_t chunks) { return pool_.chunk_bytes() * std::size_t(chunks); };
  stats.used_bytes = bytes(n_used);
  stats.cached_bytes = bytes(pool_.n_chunks() - pool_.n_free() - n_used);
  stats.hot_pages = pool_.in_use(SlabKind::kHot);
  stats.sealed_pages = pool_.in_use(SlabKind::kSealed);
  stats.cached_pages = index_.n_pages();
  stats.tails = index_.n_tails();
  stats.tail_bytes = bytes(index_.tail_slabs());
  stats.evicted_pages_total = index_.evicted_pages();
  stats.evicted_tails_total = index_.evicted_tails();
  stats.bytes_per_token_bf16 = double(layout_.slab_bytes(SlabKind::kHot)) / kPageTokens;
  stats.bytes_per_token_sealed = double(layout_.slab_bytes(SlabKind::kSealed)) / kPageTokens;
  return stats;
}

// The whole structure: every slab has as many references as holders, and every page has the
// copies that its place requires. Empty if it holds.
std::string PageTable::validate() const {
  std::array<std::vector<int>, 2> holders;
  for (const SlabKind kind : kSlabKinds) holders[std::size_t(kind)].assign(pool_.n_slabs(kind), 0);
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    const Sequence& s = sequences_[i];
    if (!s.open && s.n_pages != 0) return fmt::format("closed sequence {} holds pages", i);
    for (int p = 0; p < layout_.max_pages; ++p) {
      const PrefixIndex::Page page = s.pages[p];
      const bool hot = page.hot != kNoSlab;
      if (hot) ++holders[0][page.hot];
      if (page.sealed != kNoSlab) ++holders[1][page.sealed];
      if (pages_.slab(s.handle, p, SlabKind::kHot) != address(SlabKind::kHot, page.hot) ||
          pages_.slab(s.handle, p, SlabKind::kSealed) != address(SlabKind::kSealed, page.sealed))
        return fmt::format("sequence {} page {}: stale pointer", i, p);
      const bool wants_hot =
          p < s.n_pages && (p < sink_pages_ || p >= s.first_hot || in_kept_tail(s, p));
      if (hot != wants_hot)
        return fmt::format("sequence {} page {}: hot copy {}, wanted {}", i, p, hot, wants_hot);
      if (p < s.n_pages && !hot && s.sealed_layers[p] != n_layers_)
        return fmt::format("sequence {} page {}: neither hot nor sealed", i, p);
      if (s.sealed_layers[p] > 0 && p >= s.n_pages)
        return fmt::format("sequence {} page {}: sealed past its end", i, p);
    }
  }
  if (std::string error = index_.validate(holders); !error.empty()) return error;
  const char* error = pool_.validate(holders);
  return error == nullptr ? std::string() : error;
}

PageTable::Sequence& PageTable::sequence(KvSequence handle) {
  check(handle >= 0 && handle < int(sequences_.size()) && sequences_[handle].open,
        "not an open sequence", handle);
  return sequences_[handle];
}

std::byte* PageTable::address(SlabKind kind, Slab slab) const {
  return slab == kNoSlab ? nullptr : pool_.at(kind, slab);
}
void PageTable::hold(Sequence& s, SlabKind kind, int page, Slab slab) {
  s.pages[page].of(kind) = slab;
  pages_.set_page(s.handle, page, kind, address(kind, slab));
}
void PageTable::share(Sequence& s, SlabKind kind, int page, Slab slab) {
  pool_.share(kind, slab);
  hold(s, kind, page, slab);
}
void PageTable::drop(Sequence& s, SlabKind kind, int page) {
  const Slab slab = s.pages[page].of(kind);
  if (slab == kNoSlab) return;
  pool_.drop(kind, slab);
  hold(s, kind, page, kNoSlab);
}

// Room for so many slabs more: what is free, then what can be gathered, then what only the index
// holds, then what running sequences keep back for it.
bool PageTable::make_room(int hot, int sealed) {
  while (!pool_.fits(hot, sealed)) {
    if (!gather() && !index_.evict() && !drop_kept_tail()) return false;
  }
  return true;
}
bool PageTable::gather() {
  return pool_.compact([&](SlabKind kind, Slab from, Slab to) {
    pages_.copy_slab(pool_.at(kind, from), pool_.at(kind, to), layout_.slab_bytes(kind));
    for (Sequence& s : sequences_) {
      for (int p = 0; p < s.n_pages; ++p) {
        if (s.pages[p].of(kind) == from) hold(s, kind, p, to);
      }
    }
    index_.moved(kind, from, to);
  });
}
bool PageTable::drop_kept_tail() {
  for (Sequence& s : sequences_) {
    if (s.n_tails == 0) continue;
    const KeptTail tail = s.tails[--s.n_tails];
    for (int p = tail.first; tail.reached && p < std::min(tail.border, s.first_hot); ++p) {
      if (!in_kept_tail(s, p)) drop(s, SlabKind::kHot, p);
    }
    return true;
  }
  return false;
}

int PageTable::first_unsealed(const Sequence& s) const {
  int p = std::max(sink_pages_, s.first_hot);
  while (p < s.n_pages && s.sealed_layers[p] == n_layers_) ++p;
  return p;
}
// The tail of a border is the window before it and what was not sealed yet.
int PageTable::tail_start(const Sequence& s, int border) const {
  return std::max(sink_pages_, std::min(border - window_pages_, first_unsealed(s)));
}
bool PageTable::in_kept_tail(const Sequence& s, int page) {
  return std::any_of(s.tails.begin(), s.tails.begin() + s.n_tails, [&](const KeptTail& t) {
    return t.reached && t.first <= page && page < t.border;
  });
}

void PageTable::count_sealed_reads(const KvRows& r) {
  const std::int64_t last = r.last_position() / kPageTokens;
  for (std::int64_t page = r.first_position / kPageTokens; page <= last; ++page)
    stats_.sealed_page_reads_total += std::max<std::int64_t>(0, page - window_pages_ - sink_pages_);
}

void PageTable::debug_validate() const {
#ifndef NDEBUG
  const std::string error = validate();
  check(error.empty(), error.c_str());
#endif
}

}  // namespace foretoken
