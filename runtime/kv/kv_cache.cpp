#include "runtime/kv/kv_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <tuple>

#include "foretoken/kernels/attention.h"
#include "foretoken/kernels/kv_page.h"
#include "runtime/kv/page_pool.h"
#include "runtime/kv/prefix_index.h"

namespace foretoken {
namespace {

using kernels::kPageTokens;

// A draft is at most 64 tokens, so rows of one sequence beyond 1 + 64 are a prompt's, whose tokens
// are final.
constexpr int kMaxVerifyRows = 65;
constexpr std::size_t kCacheLine = 64;

// Bugs that would break law 2 silently stop the process in every build.
void check(bool condition, const char* what, std::int64_t a = 0, std::int64_t b = 0) {
  if (condition) return;
  std::fprintf(stderr, "kv cache: %s (%lld, %lld)\n", what, static_cast<long long>(a),
               static_cast<long long>(b));
  std::abort();
}

// The 16-bit copies of a sequence's pages [first, border), kept back for the index while it goes
// on.
struct KeptTail {
  int border = 0, first = 0;
  bool reached = false;  // the border was committed, the copies are held
};

struct Sequence {
  bool open = false;
  std::int64_t committed = 0;
  std::int64_t stored = 0;  // end of the last forward pass's rows: a draft model goes on from there
  int n_pages = 0;          // pages with positions below the reserved length
  int first_hot = 0;        // of pages [sink, first_hot) only kept tails have a hot copy
  int n_sealable = 0;       // pages [sink, sink + n_sealable) have their sealed slab
  std::vector<PrefixIndex::Page> pages;  // [max_pages] slabs held
  std::vector<int> sealed_layers;        // [max_pages] layers sealed so far: 0 .. n_layers
  std::vector<const std::byte*> hot;     // [max_pages] slab or null, as the kernels want it
  std::vector<const std::byte*> sealed;
  std::array<KeptTail, 2> tails;  // of the prompt's last border, and where it left a known path
  int n_tails = 0;
};

class PagedKvCache final : public KvCache {
 public:
  PagedKvCache(const KvGeometry& geometry, const KvOptions& options,
               std::shared_ptr<const KvCalibration> calibration)
      : geometry_(geometry),
        options_(options),
        calibration_(std::move(calibration)),
        int2_(kernels::kv_format(options.mode).bits > 0),
        sink_pages_(options.sink_tokens / kPageTokens),
        window_pages_(options.window_tokens / kPageTokens),
        hot_stride_(kernels::hot_page_bytes(geometry.head_dim)),
        sealed_stride_(
            (kernels::sealed_page_bytes(options.mode, geometry.head_dim) + kCacheLine - 1) /
            kCacheLine * kCacheLine),
        hot_slab_bytes_(hot_stride_ * geometry.n_layers * geometry.n_kv_heads),
        sealed_slab_bytes_(sealed_stride_ * geometry.n_layers * geometry.n_kv_heads),
        max_pages_(static_cast<int>((options.max_model_len + kPageTokens - 1) / kPageTokens)),
        pool_(hot_slab_bytes_, int2_ ? sealed_slab_bytes_ : hot_slab_bytes_, options.memory_bytes),
        index_(pool_, {.sink_pages = sink_pages_,
                       .window_pages = window_pages_,
                       .seals = int2_,
                       .tail_slabs = static_cast<int>(options.tail_bytes / pool_.chunk_bytes())}),
        sequences_(options.max_sequences) {
    for (Sequence& s : sequences_) {
      s.pages.assign(max_pages_, {});
      s.sealed_layers.assign(max_pages_, 0);
      s.hot.assign(max_pages_, nullptr);
      s.sealed.assign(max_pages_, nullptr);
    }
    attention_rows_.reserve(options.max_sequences);
    to_seal_.reserve(static_cast<std::size_t>(options.max_sequences) * max_pages_);
  }

  bool ok() const { return pool_.ok(); }
  std::size_t chunk_bytes() const { return pool_.chunk_bytes(); }

  std::optional<KvSequence> open() override {
    for (int i = 0; i < static_cast<int>(sequences_.size()); ++i) {
      if (sequences_[i].open) continue;
      sequences_[i].open = true;
      return i;
    }
    return std::nullopt;
  }

  void close(KvSequence handle) override {
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

  void close_and_keep(KvSequence handle, const PageChain& chain) override {
    Sequence& s = sequence(handle);
    const auto border = static_cast<int>(std::min<std::int64_t>(
        s.committed / kPageTokens, static_cast<std::int64_t>(chain.pages().size())));
    std::array<PrefixIndex::Tail, std::tuple_size_v<decltype(s.tails)> + 1> tails;
    std::size_t n_tails = 0;
    for (int i = 0; i < s.n_tails; ++i) {
      if (s.tails[i].reached) tails[n_tails++] = {s.tails[i].first, s.tails[i].border};
    }
    if (border == s.committed / kPageTokens) tails[n_tails++] = {tail_start(s, border), border};
    // What is not sealed in all layers is no content.
    for (int p = first_unsealed(s); p < s.n_pages; ++p) drop(s, SlabKind::kSealed, p);
    index_.add(chain.pages().first(static_cast<std::size_t>(border)),
               std::span(s.pages).first(static_cast<std::size_t>(border)),
               std::span(tails).first(n_tails), chain.owner());
    close(handle);
  }

  std::int64_t resume(KvSequence handle, const PageChain& chain, std::int64_t n_prompt,
                      std::int64_t limit) override {
    Sequence& s = sequence(handle);
    check(s.n_pages == 0 && s.committed == 0, "only a fresh sequence resumes", s.n_pages);
    const auto pages_of = [](std::int64_t tokens) {
      return static_cast<int>(tokens / kPageTokens);
    };
    const auto path = index_.match(chain.pages().first(
        std::min(chain.pages().size(), static_cast<std::size_t>(std::max(0, pages_of(limit))))));
    int border = index_.resumable(path, static_cast<int>(path.size()));
    const bool without_tail = options_.fault_resume_without_tail;
    if (without_tail) border = last_sealed_border(path);
    const auto taken = path.first(static_cast<std::size_t>(border));
    s.n_pages = border;
    s.committed = s.stored = static_cast<std::int64_t>(border) * kPageTokens;
    s.first_hot = without_tail ? std::max(sink_pages_, border - window_pages_)
                               : index_.first_hot(path, border);
    for (int p = 0; p < border; ++p) {
      const PrefixIndex::Page page = index_.page(taken[static_cast<std::size_t>(p)]);
      if (p < sink_pages_ || p >= s.first_hot) {
        if (page.hot != kNoSlab) hold(s, SlabKind::kHot, p, share(SlabKind::kHot, page.hot));
      }
      if (page.sealed == kNoSlab) continue;
      hold(s, SlabKind::kSealed, p, share(SlabKind::kSealed, page.sealed));
      s.sealed_layers[p] = geometry_.n_layers;
    }
    while (sink_pages_ + s.n_sealable < border &&
           s.pages[sink_pages_ + s.n_sealable].sealed != kNoSlab)
      ++s.n_sealable;
    index_.used(taken);
    if (without_tail) make_up_tail(s, border);
    // The prompt's last border, and the end of what was known where that is further than its tails.
    if (int2_ && options_.tail_bytes > 0) {
      for (const int wanted :
           {pages_of(std::min(n_prompt, limit)), static_cast<int>(path.size())}) {
        const bool twice = s.n_tails > 0 && s.tails[0].border == wanted;
        if (wanted > border && !twice) s.tails[s.n_tails++] = {.border = wanted};
      }
    }
    debug_validate();
    return s.committed;
  }

  void forget(std::uint64_t owner) override {
    index_.forget(owner);
    debug_validate();
  }

  bool reserve(KvSequence handle, std::int64_t length) override {
    Sequence& s = sequence(handle);
    if (length > options_.max_model_len) return false;
    const int pages = static_cast<int>((length + kPageTokens - 1) / kPageTokens);
    if (pages <= s.n_pages) return true;
    // Pages that a row below `length` reads as INT2 get their sealed slab now: sealing never
    // allocates.
    const int sealable =
        int2_ ? std::max(s.n_sealable, pages - 1 - window_pages_ - sink_pages_) : 0;
    int new_sealed = 0;
    for (int i = s.n_sealable; i < sealable; ++i)
      new_sealed += s.pages[sink_pages_ + i].sealed == kNoSlab;
    if (!make_room(pages - s.n_pages, new_sealed)) return false;
    for (; s.n_sealable < sealable; ++s.n_sealable) {
      const int p = sink_pages_ + s.n_sealable;
      if (s.pages[p].sealed == kNoSlab)
        hold(s, SlabKind::kSealed, p, pool_.take(SlabKind::kSealed));
    }
    for (; s.n_pages < pages; ++s.n_pages)
      hold(s, SlabKind::kHot, s.n_pages, pool_.take(SlabKind::kHot));
    debug_validate();
    return true;
  }

  void commit(KvSequence handle, std::int64_t length) override {
    Sequence& s = sequence(handle);
    check(length >= s.committed, "commit goes back", length, s.committed);
    check(length <= static_cast<std::int64_t>(s.n_pages) * kPageTokens,
          "commit past what is reserved", length, s.n_pages);
    s.committed = length;
    if (!int2_) return;
    // Before anything is released: every page that the last rows read is still here in 16 bits.
    for (int i = 0; i < s.n_tails; ++i) {
      KeptTail& tail = s.tails[i];
      if (tail.reached || length / kPageTokens < tail.border) continue;
      tail.first = tail_start(s, tail.border);
      tail.reached = true;
    }
    // Every row to come is at `length` or later: it reads page p as INT2 if p < length / 64 -
    // window.
    const std::int64_t read_as_int2 = length / kPageTokens - window_pages_;
    for (s.first_hot = std::max(s.first_hot, sink_pages_);
         s.first_hot < read_as_int2 && s.sealed_layers[s.first_hot] == geometry_.n_layers;
         ++s.first_hot) {
      if (!in_kept_tail(s, s.first_hot)) drop(s, SlabKind::kHot, s.first_hot);
    }
    debug_validate();
  }

  std::int64_t committed(KvSequence handle) const override { return sequences_[handle].committed; }

  void keep_path(KvSequence handle, std::int64_t first_position,
                 std::span<const int> path) override {
    Sequence& s = sequence(handle);
    // Ascending, to a slot at or before a row's own: nothing that is still to move is overwritten.
    for (std::size_t i = 0; i < path.size(); ++i) {
      const std::int64_t to = first_position + static_cast<std::int64_t>(i);
      const std::int64_t from = first_position + path[i];
      check(from >= to && from < s.stored, "a path's row was not of the last pass", from, s.stored);
      check(from == to || to > s.committed, "a committed token would be overwritten", to);
      if (from == to) continue;
      const auto page = [&](std::int64_t position) {
        return pool_.at(SlabKind::kHot, s.pages[position / kPageTokens].hot);
      };
      for (int n = 0; n < geometry_.n_layers * geometry_.n_kv_heads; ++n) {
        kernels::copy_kv(page(from) + hot_stride_ * n, static_cast<int>(from % kPageTokens),
                         geometry_.head_dim, page(to) + hot_stride_ * n,
                         static_cast<int>(to % kPageTokens));
      }
    }
    s.stored = first_position + static_cast<std::int64_t>(path.size());
  }

  void store(int layer, std::span<const KvRows> rows, const float* k, std::int64_t k_stride,
             const float* v, std::int64_t v_stride) override {
    const int d = geometry_.head_dim;
    for (const KvRows& r : rows) {
      Sequence& s = sequence(r.sequence);
      check(r.first_position <= std::max(s.committed, s.stored),
            "rows leave a gap after what is stored", r.first_position, s.stored);
      if (layer + 1 == geometry_.n_layers) s.stored = r.first_position + r.n_rows;
      for (int i = 0; i < r.n_rows; ++i) {
        const std::int64_t position = r.first_position + i;
        const int page = static_cast<int>(position / kPageTokens);
        check(page < s.n_pages && s.hot[page] != nullptr,
              "a row is stored where nothing is reserved", position);
        check(s.sealed_layers[page] <= layer, "a row is stored into a sealed page", position);
        check(pool_.refs(SlabKind::kHot, s.pages[page].hot) == 1,
              "a row is stored into a shared page", position);
        std::byte* slab = pool_.at(SlabKind::kHot, s.pages[page].hot) +
                          hot_stride_ * layer * geometry_.n_kv_heads;
        for (int h = 0; h < geometry_.n_kv_heads; ++h) {
          kernels::store_kv(slab + hot_stride_ * h, d, static_cast<int>(position % kPageTokens),
                            k + (r.first_row + i) * k_stride + static_cast<std::size_t>(h) * d,
                            v + (r.first_row + i) * v_stride + static_cast<std::size_t>(h) * d);
        }
        if (options_.fault_seal_drafted && position % kPageTokens == kPageTokens - 1) {
          drafted_copies_.try_emplace({r.sequence, page, layer}, slab,
                                      slab + hot_stride_ * geometry_.n_kv_heads);
        }
      }
    }
  }

  void attend(int layer, std::span<const KvRows> rows, const float* q, std::int64_t q_stride,
              float* out, std::int64_t out_stride, float scale,
              kernels::ThreadPool& pool) override {
    if (int2_) seal(layer, rows, pool);
    attention_rows_.clear();
    for (const KvRows& r : rows) {
      const Sequence& s = sequence(r.sequence);
      attention_rows_.push_back({.first_position = r.first_position,
                                 .n_rows = r.n_rows,
                                 .q = q + r.first_row * q_stride,
                                 .out = out + r.first_row * out_stride,
                                 .hot = s.hot.data(),
                                 .sealed = s.sealed.data(),
                                 .parents = r.parents});
      if (int2_ && layer == 0) count_int2_reads(r);
    }
    if (scratch_.empty() || scratch_threads_ != pool.size()) {
      scratch_threads_ = pool.size();
      scratch_.resize(kernels::attention_scratch_bytes(options_.max_rows, geometry_.n_heads,
                                                       geometry_.head_dim, pool.size(),
                                                       options_.max_model_len) +
                      kCacheLine);
    }
    const kernels::AttentionCall call{
        .sequences = attention_rows_.data(),
        .n_sequences = static_cast<int>(attention_rows_.size()),
        .n_heads = geometry_.n_heads,
        .n_kv_heads = geometry_.n_kv_heads,
        .head_dim = geometry_.head_dim,
        .q_stride = q_stride,
        .out_stride = out_stride,
        .scale = scale,
        .hot_offset = hot_stride_ * layer * geometry_.n_kv_heads,
        .hot_stride = hot_stride_,
        .sealed_offset = sealed_stride_ * layer * geometry_.n_kv_heads,
        .sealed_stride = sealed_stride_,
        .mode = options_.mode,
        .sink_pages = sink_pages_,
        .window_pages = window_pages_,
        .transforms = int2_ ? calibration_->layer(options_.mode, layer) : nullptr};
    kernels::attention(call, scratch_.data(), scratch_.size(), pool);
  }

  std::int64_t capacity_tokens() const override {
    const std::int64_t chunks = pool_.n_chunks();
    std::int64_t pages = chunks;
    if (int2_) {
      // At rest: sink, window and two partial pages hot, the rest sealed. What a prefill chunk
      // needs on top (its pages are hot until it is committed) comes off the capacity too.
      const std::int64_t hot =
          sink_pages_ + window_pages_ + 2 + (options_.max_rows + kPageTokens - 1) / kPageTokens;
      pages = chunks <= hot ? chunks : hot + (chunks - hot) * pool_.per_chunk(SlabKind::kSealed);
    }
    return std::min<std::int64_t>(pages * kPageTokens, options_.max_model_len);
  }

  KvStats stats() const override {
    KvStats stats = stats_;
    stats.pool_bytes = pool_.chunk_bytes() * pool_.n_chunks();
    // A chunk is used if a sequence holds any of its slabs; what only the index holds is there for
    // whoever needs it.
    std::vector<bool> used(static_cast<std::size_t>(pool_.n_chunks()), false);
    std::int64_t n_used = 0;
    const auto mark = [&](SlabKind kind, Slab slab) {
      if (slab == kNoSlab) return;
      const auto chunk = static_cast<std::size_t>(pool_.chunk_of(kind, slab));
      n_used += !used[chunk];
      used[chunk] = true;
    };
    for (const Sequence& s : sequences_) {
      for (int p = 0; p < s.n_pages; ++p) {
        mark(SlabKind::kHot, s.pages[p].hot);
        mark(SlabKind::kSealed, s.pages[p].sealed);
      }
    }
    const auto bytes = [&](std::int64_t chunks) {
      return pool_.chunk_bytes() * static_cast<std::size_t>(chunks);
    };
    stats.used_bytes = bytes(n_used);
    stats.cached_bytes = bytes(pool_.n_chunks() - pool_.n_free() - n_used);
    stats.hot_pages = pool_.in_use(SlabKind::kHot);
    stats.sealed_pages = pool_.in_use(SlabKind::kSealed);
    stats.cached_pages = index_.n_pages();
    stats.tails = index_.n_tails();
    stats.tail_bytes = bytes(index_.tail_slabs());
    stats.evicted_pages_total = index_.evicted_pages();
    stats.evicted_tails_total = index_.evicted_tails();
    stats.bytes_per_token_bf16 = static_cast<double>(hot_slab_bytes_) / kPageTokens;
    stats.bytes_per_token_sealed = static_cast<double>(sealed_slab_bytes_) / kPageTokens;
    return stats;
  }

  const KvOptions& options() const override { return options_; }

  // The whole structure: every slab has as many references as holders, and every page has the
  // copies that its place requires. Empty if it holds.
  std::string validate() const override {
    std::array<std::vector<int>, 2> holders;
    for (const SlabKind kind : {SlabKind::kHot, SlabKind::kSealed})
      holders[static_cast<std::size_t>(kind)].assign(pool_.n_slabs(kind), 0);
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence& s = sequences_[i];
      if (!s.open && s.n_pages != 0) return fmt::format("closed sequence {} holds pages", i);
      for (int p = 0; p < max_pages_; ++p) {
        const PrefixIndex::Page page = s.pages[p];
        const bool hot = page.hot != kNoSlab;
        if (hot) ++holders[0][page.hot];
        if (page.sealed != kNoSlab) ++holders[1][page.sealed];
        if (s.hot[p] != (hot ? pool_.at(SlabKind::kHot, page.hot) : nullptr) ||
            s.sealed[p] !=
                (page.sealed != kNoSlab ? pool_.at(SlabKind::kSealed, page.sealed) : nullptr))
          return fmt::format("sequence {} page {}: stale pointer", i, p);
        const bool wants_hot =
            p < s.n_pages && (p < sink_pages_ || p >= s.first_hot || in_kept_tail(s, p));
        if (hot != wants_hot)
          return fmt::format("sequence {} page {}: hot copy {}, wanted {}", i, p, hot, wants_hot);
        if (p < s.n_pages && !hot && s.sealed_layers[p] != geometry_.n_layers) {
          return fmt::format("sequence {} page {}: neither hot nor sealed", i, p);
        }
        if (s.sealed_layers[p] > 0 && p >= s.n_pages) {
          return fmt::format("sequence {} page {}: sealed past its end", i, p);
        }
      }
    }
    if (std::string error = index_.validate(holders); !error.empty()) return error;
    const char* error = pool_.validate(holders);
    return error == nullptr ? std::string() : error;
  }

  std::span<const std::byte> sealed_bytes(KvSequence handle, int page, int layer,
                                          int kv_head) const override {
    const Sequence& s = sequences_[handle];
    if (page >= max_pages_ || s.sealed_layers[page] <= layer) return {};
    return {s.sealed[page] + sealed_stride_ * (layer * geometry_.n_kv_heads + kv_head),
            kernels::sealed_page_bytes(options_.mode, geometry_.head_dim)};
  }
  std::span<const std::byte> hot_bytes(KvSequence handle, int page, int layer,
                                       int kv_head) const override {
    const Sequence& s = sequences_[handle];
    if (page >= max_pages_ || s.hot[page] == nullptr) return {};
    return {s.hot[page] + hot_stride_ * (layer * geometry_.n_kv_heads + kv_head), hot_stride_};
  }

 private:
  struct SealTask {
    const std::byte* hot;
    std::byte* sealed;
  };

  Sequence& sequence(KvSequence handle) {
    check(handle >= 0 && handle < static_cast<int>(sequences_.size()) && sequences_[handle].open,
          "not an open sequence", handle);
    return sequences_[handle];
  }

  Slab share(SlabKind kind, Slab slab) {
    pool_.share(kind, slab);
    return slab;
  }
  void hold(Sequence& s, SlabKind kind, int page, Slab slab) {
    (kind == SlabKind::kHot ? s.pages[page].hot : s.pages[page].sealed) = slab;
    (kind == SlabKind::kHot ? s.hot : s.sealed)[page] = pool_.at(kind, slab);
  }
  void drop(Sequence& s, SlabKind kind, int page) {
    Slab& slab = kind == SlabKind::kHot ? s.pages[page].hot : s.pages[page].sealed;
    if (slab == kNoSlab) return;
    pool_.drop(kind, slab);
    slab = kNoSlab;
    (kind == SlabKind::kHot ? s.hot : s.sealed)[page] = nullptr;
  }

  // Room for so many slabs more: what is free, then what can be gathered, then what only the index
  // holds, then what running sequences keep back for it.
  bool make_room(int hot, int sealed) {
    while (!pool_.fits(hot, sealed)) {
      if (!gather() && !index_.evict() && !drop_kept_tail()) return false;
    }
    return true;
  }
  bool gather() {
    return pool_.compact([&](SlabKind kind, Slab from, Slab to) {
      for (Sequence& s : sequences_) {
        for (int p = 0; p < s.n_pages; ++p) {
          if ((kind == SlabKind::kHot ? s.pages[p].hot : s.pages[p].sealed) == from)
            hold(s, kind, p, to);
        }
      }
      index_.moved(kind, from, to);
    });
  }
  bool drop_kept_tail() {
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

  int first_unsealed(const Sequence& s) const {
    int p = std::max(sink_pages_, s.first_hot);
    while (p < s.n_pages && s.sealed_layers[p] == geometry_.n_layers) ++p;
    return p;
  }
  // The tail of a border is the window before it and what was not sealed yet.
  int tail_start(const Sequence& s, int border) const {
    return std::max(sink_pages_, std::min(border - window_pages_, first_unsealed(s)));
  }
  static bool in_kept_tail(const Sequence& s, int page) {
    return std::any_of(s.tails.begin(), s.tails.begin() + s.n_tails, [&](const KeptTail& t) {
      return t.reached && t.first <= page && page < t.border;
    });
  }

  // Negative control (KvOptions::fault_resume_without_tail): as if sealed pages were enough.
  int last_sealed_border(std::span<const PrefixIndex::NodeId> path) const {
    int border = sink_pages_;
    while (border < static_cast<int>(path.size()) &&
           index_.page(path[static_cast<std::size_t>(border)]).sealed != kNoSlab)
      ++border;
    return std::min(border, static_cast<int>(path.size()));
  }
  void make_up_tail(Sequence& s, int border) {
    const int d = geometry_.head_dim;
    std::vector<float> k(static_cast<std::size_t>(kPageTokens) * d), v(k.size());
    for (int p = s.first_hot; p < border; ++p) {
      if (s.hot[p] != nullptr) continue;
      check(make_room(1, 0), "no room for the fault", p);
      hold(s, SlabKind::kHot, p, pool_.take(SlabKind::kHot));
      for (int i = 0; i < geometry_.n_layers * geometry_.n_kv_heads; ++i) {
        kernels::dequantize_sealed_page(
            s.sealed[p] + sealed_stride_ * i, options_.mode,
            calibration_->layer(options_.mode, i / geometry_.n_kv_heads)[i % geometry_.n_kv_heads],
            d, k.data(), v.data());
        for (int slot = 0; slot < kPageTokens; ++slot) {
          kernels::store_kv(const_cast<std::byte*>(s.hot[p]) + hot_stride_ * i, d, slot,
                            &k[static_cast<std::size_t>(slot) * d],
                            &v[static_cast<std::size_t>(slot) * d]);
        }
      }
    }
  }

  // Seals in this layer what these rows read as INT2. The last row's page decides for all of them:
  // a page it reads as INT2 is final, and rows before it still find the 16-bit copy.
  void seal(int layer, std::span<const KvRows> rows, kernels::ThreadPool& pool) {
    to_seal_.clear();
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
        if (layer + 1 == geometry_.n_layers) ++stats_.sealed_pages_total;
        check(pool_.refs(SlabKind::kSealed, s.pages[p].sealed) == 1,
              "a shared page would be sealed again", p);
        to_seal_.push_back({s.hot[p], const_cast<std::byte*>(s.sealed[p])});
        if (options_.fault_seal_drafted) {
          const auto& copy = drafted_copies_.at({r.sequence, int(p), layer});
          std::memcpy(const_cast<std::byte*>(s.hot[p]) + hot_stride_ * layer * geometry_.n_kv_heads,
                      copy.data(), copy.size());
        }
      }
    }
    if (to_seal_.empty()) return;
    const int heads = geometry_.n_kv_heads;
    pool.tasks(static_cast<int>(to_seal_.size()) * heads, [&](int task, int) {
      const SealTask& page = to_seal_[task / heads];
      const std::size_t index = static_cast<std::size_t>(layer) * heads + task % heads;
      kernels::seal_page(page.hot + hot_stride_ * index, options_.mode,
                         calibration_->layer(options_.mode, layer)[task % heads],
                         geometry_.head_dim, page.sealed + sealed_stride_ * index);
    });
  }

  void count_int2_reads(const KvRows& r) {
    const std::int64_t last = r.last_position() / kPageTokens;
    for (std::int64_t page = r.first_position / kPageTokens; page <= last; ++page) {
      stats_.int2_page_reads_total += std::max<std::int64_t>(0, page - window_pages_ - sink_pages_);
    }
  }

  void debug_validate() const {
#ifndef NDEBUG
    const std::string error = validate();
    check(error.empty(), error.c_str());
#endif
  }

  const KvGeometry geometry_;
  const KvOptions options_;
  std::map<std::tuple<int, int, int>, std::vector<std::byte>>
      drafted_copies_;  // fault_seal_drafted only
  const std::shared_ptr<const KvCalibration> calibration_;
  const bool int2_;
  const int sink_pages_, window_pages_;
  const std::size_t hot_stride_, sealed_stride_, hot_slab_bytes_, sealed_slab_bytes_;
  const int max_pages_;
  PagePool pool_;
  PrefixIndex index_;
  std::vector<Sequence> sequences_;
  KvStats stats_;
  std::vector<kernels::AttentionRows> attention_rows_;
  std::vector<SealTask> to_seal_;
  std::vector<std::byte> scratch_;
  int scratch_threads_ = 0;
};

}  // namespace

std::string_view kv_mode_name(KvMode mode) { return kernels::kv_format(mode).name; }

std::optional<KvMode> parse_kv_mode(std::string_view name) {
  for (const kernels::KvFormat& format : kernels::kKvFormats) {
    if (name == format.name) return format.mode;
  }
  return std::nullopt;
}

std::span<const KvMode> kv_modes() {
  static const auto modes = [] {
    std::array<KvMode, std::size(kernels::kKvFormats)> all{};
    std::transform(std::begin(kernels::kKvFormats), std::end(kernels::kKvFormats), all.begin(),
                   [](const kernels::KvFormat& format) { return format.mode; });
    return all;
  }();
  return modes;
}

std::string kv_mode_names() {
  std::string names;
  for (std::size_t i = 0; i < kv_modes().size(); ++i) {
    if (i > 0) names += i + 1 == kv_modes().size() ? " or " : ", ";
    names += kv_mode_name(kv_modes()[i]);
  }
  return names;
}

bool kv_mode_needs_calibration(KvMode mode) {
  const kernels::KvTransformKind kind = kernels::kv_format(mode).transform;
  return kind != kernels::KvTransformKind::kIdentity && kind != kernels::KvTransformKind::kHadamard;
}

Result<std::unique_ptr<KvCache>> KvCache::create(const KvGeometry& geometry,
                                                 const KvOptions& options,
                                                 std::shared_ptr<const KvCalibration> calibration) {
  const auto bad = [](std::string message) {
    return Error{ErrorCode::kInvalidInput, "kv cache: " + message};
  };
  if (geometry.n_layers <= 0 || geometry.n_kv_heads <= 0 || geometry.n_heads <= 0 ||
      geometry.n_heads % geometry.n_kv_heads != 0 || geometry.n_heads / geometry.n_kv_heads > 64) {
    return bad(fmt::format("{} layers, {} heads, {} KV heads are not supported", geometry.n_layers,
                           geometry.n_heads, geometry.n_kv_heads));
  }
  if (geometry.head_dim <= 0 || geometry.head_dim % 16 != 0 ||
      geometry.head_dim > kernels::kMaxHeadDim) {
    return bad(fmt::format("head_dim {} is not a multiple of 16 up to {}", geometry.head_dim,
                           kernels::kMaxHeadDim));
  }
  if (options.sink_tokens < 0 || options.sink_tokens % kPageTokens != 0) {
    return bad(
        fmt::format("sink_tokens {} is not a multiple of {}", options.sink_tokens, kPageTokens));
  }
  if (options.window_tokens < kPageTokens || options.window_tokens % kPageTokens != 0) {
    return bad(fmt::format("window_tokens {} is not a multiple of {}, at least {}",
                           options.window_tokens, kPageTokens, kPageTokens));
  }
  if (options.max_sequences <= 0 || options.max_rows <= 0 || options.max_model_len <= 0) {
    return bad("max_sequences, max_rows and max_model_len must be positive");
  }
  if (calibration == nullptr) calibration = std::make_shared<const KvCalibration>(geometry);
  if (!calibration->covers(options.mode))
    return bad(fmt::format("{} needs a calibration", kv_mode_name(options.mode)));
  auto cache = std::make_unique<PagedKvCache>(geometry, options, std::move(calibration));
  if (options.memory_bytes < cache->chunk_bytes()) {
    return bad(fmt::format("memory_bytes {} is less than one page of {}", options.memory_bytes,
                           cache->chunk_bytes()));
  }
  if (!cache->ok()) {
    return Error{ErrorCode::kOutOfRange,
                 fmt::format("kv cache: cannot map {} bytes", options.memory_bytes)};
  }
  return std::unique_ptr<KvCache>(std::move(cache));
}

}  // namespace foretoken
