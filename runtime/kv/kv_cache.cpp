#include "runtime/kv/kv_cache.h"

#include <fmt/format.h>
#include <sys/mman.h>

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

namespace foretoken {
namespace {

using kernels::kPageTokens;

// A draft is at most 64 tokens (DESIGN section 6): rows of one sequence beyond 1 + 64 are a
// prompt's, whose tokens are final.
constexpr int kMaxVerifyRows = 65;
constexpr std::size_t kCacheLine = 64;

// Bugs that would break law 2 silently stop the process in every build.
void check(bool condition, const char* what, std::int64_t a = 0, std::int64_t b = 0) {
  if (condition) return;
  std::fprintf(stderr, "kv cache: %s (%lld, %lld)\n", what, static_cast<long long>(a),
               static_cast<long long>(b));
  std::abort();
}

// The pool is cut into chunks of one hot slab each (one page, all layers and KV heads). A chunk
// holds one hot slab, or several sealed slabs of one sequence: 7 at head_dim 128, where 7.1 would
// fit; 6 at 64. Equal chunks cannot fragment, so what is free can always be used for either kind.
class Pool {
 public:
  Pool(std::size_t chunk_bytes, int n_chunks) : chunk_bytes_(chunk_bytes), n_chunks_(n_chunks) {
    bytes_ = chunk_bytes * n_chunks;
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return;
    base_ = static_cast<std::byte*>(memory);
    madvise(base_, bytes_, MADV_HUGEPAGE);
    free_.reserve(n_chunks);
    for (int i = n_chunks - 1; i >= 0; --i)
      free_.push_back(i);  // low chunks first: touched memory stays small
  }
  ~Pool() {
    if (base_ != nullptr) munmap(base_, bytes_);
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  bool ok() const { return base_ != nullptr; }
  int n_chunks() const { return n_chunks_; }
  int n_free() const { return static_cast<int>(free_.size()); }
  std::size_t chunk_bytes() const { return chunk_bytes_; }
  int take() {
    const int chunk = free_.back();
    free_.pop_back();
    return chunk;
  }
  void give(int chunk) { free_.push_back(chunk); }
  std::byte* at(int chunk) const { return base_ + static_cast<std::size_t>(chunk) * chunk_bytes_; }
  const std::vector<int>& free_chunks() const { return free_; }

 private:
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0, chunk_bytes_;
  int n_chunks_;
  std::vector<int> free_;
};

constexpr int kNone = -1;

struct Sequence {
  bool open = false;
  std::int64_t committed = 0;
  std::int64_t stored = 0;  // end of the last forward pass's rows: a draft model goes on from there
  int n_pages = 0;          // pages with positions below the reserved length
  int first_hot = 0;        // pages [sink, first_hot) have no hot copy
  int n_sealable = 0;       // sealed slabs held: pages [sink, sink + n_sealable)
  std::vector<int> hot_chunk;         // [max_pages] or kNone
  std::vector<int> sealed_chunks;     // of sealed slabs, in order
  std::vector<int> sealed_layers;     // [max_pages] layers sealed so far: 0 .. n_layers
  std::vector<const std::byte*> hot;  // [max_pages] slab or null, as the kernels want it
  std::vector<const std::byte*> sealed;
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
        sealed_stride_((kernels::sealed_page_bytes(geometry.head_dim) + kCacheLine - 1) /
                       kCacheLine * kCacheLine),
        hot_slab_bytes_(hot_stride_ * geometry.n_layers * geometry.n_kv_heads),
        sealed_slab_bytes_(sealed_stride_ * geometry.n_layers * geometry.n_kv_heads),
        sealed_per_chunk_(static_cast<int>(hot_slab_bytes_ / sealed_slab_bytes_)),
        max_pages_(static_cast<int>((options.max_model_len + kPageTokens - 1) / kPageTokens)),
        pool_(hot_slab_bytes_, static_cast<int>(options.memory_bytes / hot_slab_bytes_)),
        sequences_(options.max_sequences) {
    for (Sequence& s : sequences_) {
      s.hot_chunk.assign(max_pages_, kNone);
      s.sealed_layers.assign(max_pages_, 0);
      s.hot.assign(max_pages_, nullptr);
      s.sealed.assign(max_pages_, nullptr);
      s.sealed_chunks.reserve(max_pages_ / sealed_per_chunk_ + 1);
    }
    attention_rows_.reserve(options.max_sequences);
    to_seal_.reserve(static_cast<std::size_t>(options.max_sequences) * max_pages_);
  }

  bool ok() const { return pool_.ok(); }

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
      release_hot(s, p);
      s.sealed[p] = nullptr;
      s.sealed_layers[p] = 0;
    }
    for (const int chunk : s.sealed_chunks) pool_.give(chunk);
    stats_.sealed_pages -= s.n_sealable;
    s.sealed_chunks.clear();
    s.open = false;
    s.committed = 0;
    s.n_pages = s.first_hot = s.n_sealable = 0;
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
    const int sealed_chunks = (sealable + sealed_per_chunk_ - 1) / sealed_per_chunk_;
    const int new_sealed = sealed_chunks - static_cast<int>(s.sealed_chunks.size());
    if (pages - s.n_pages + new_sealed > pool_.n_free()) return false;
    for (int i = 0; i < new_sealed; ++i) s.sealed_chunks.push_back(pool_.take());
    for (; s.n_sealable < sealable; ++s.n_sealable, ++stats_.sealed_pages) {
      s.sealed[sink_pages_ + s.n_sealable] =
          pool_.at(s.sealed_chunks[s.n_sealable / sealed_per_chunk_]) +
          s.n_sealable % sealed_per_chunk_ * sealed_slab_bytes_;
    }
    for (; s.n_pages < pages; ++s.n_pages, ++stats_.hot_pages) {
      s.hot_chunk[s.n_pages] = pool_.take();
      s.hot[s.n_pages] = pool_.at(s.hot_chunk[s.n_pages]);
    }
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
    // Every row to come is at `length` or later: it reads page p as INT2 if p < length / 64 -
    // window.
    const std::int64_t read_as_int2 = length / kPageTokens - window_pages_;
    for (s.first_hot = std::max(s.first_hot, sink_pages_);
         s.first_hot < read_as_int2 && s.sealed_layers[s.first_hot] == geometry_.n_layers;
         ++s.first_hot) {
      release_hot(s, s.first_hot);
    }
    debug_validate();
  }

  std::int64_t committed(KvSequence handle) const override { return sequences_[handle].committed; }

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
        check(page < s.n_pages && s.hot_chunk[page] != kNone,
              "a row is stored where nothing is reserved", position);
        check(s.sealed_layers[page] <= layer, "a row is stored into a sealed page", position);
        std::byte* slab = pool_.at(s.hot_chunk[page]) + hot_stride_ * layer * geometry_.n_kv_heads;
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
                                 .sealed = s.sealed.data()});
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
        .int2 = int2_,
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
      pages = chunks <= hot ? chunks : hot + (chunks - hot) * sealed_per_chunk_;
    }
    return std::min<std::int64_t>(pages * kPageTokens, options_.max_model_len);
  }

  KvStats stats() const override {
    KvStats stats = stats_;
    stats.pool_bytes = pool_.chunk_bytes() * pool_.n_chunks();
    stats.used_bytes = pool_.chunk_bytes() * (pool_.n_chunks() - pool_.n_free());
    stats.bytes_per_token_bf16 = static_cast<double>(hot_slab_bytes_) / kPageTokens;
    stats.bytes_per_token_sealed = static_cast<double>(sealed_slab_bytes_) / kPageTokens;
    return stats;
  }

  const KvOptions& options() const override { return options_; }

  // The whole structure: every chunk is free or held exactly once, and every page has the copies
  // that its place requires. Empty if it holds.
  std::string validate() const override {
    std::vector<int> holders(pool_.n_chunks(), 0);
    for (const int chunk : pool_.free_chunks()) ++holders[chunk];
    std::int64_t hot_pages = 0, sealed_pages = 0;
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence& s = sequences_[i];
      if (!s.open && (s.n_pages != 0 || !s.sealed_chunks.empty()))
        return fmt::format("closed sequence {} holds pages", i);
      for (int p = 0; p < max_pages_; ++p) {
        const bool hot = s.hot_chunk[p] != kNone;
        if (hot) ++holders[s.hot_chunk[p]], ++hot_pages;
        if (s.sealed[p] != nullptr) ++sealed_pages;
        const std::byte* slab = hot ? pool_.at(s.hot_chunk[p]) : nullptr;
        if (s.hot[p] != slab) return fmt::format("sequence {} page {}: stale hot pointer", i, p);
        const bool wants_hot = p < s.n_pages && (p < sink_pages_ || p >= s.first_hot);
        if (hot != wants_hot)
          return fmt::format("sequence {} page {}: hot copy {}, wanted {}", i, p, hot, wants_hot);
        if (p < s.n_pages && !hot && s.sealed_layers[p] != geometry_.n_layers) {
          return fmt::format("sequence {} page {}: neither hot nor sealed", i, p);
        }
        if (s.sealed_layers[p] > 0 && (p + 1) * kPageTokens > s.n_pages * kPageTokens) {
          return fmt::format("sequence {} page {}: sealed past its end", i, p);
        }
      }
      for (const int chunk : s.sealed_chunks) ++holders[chunk];
    }
    for (std::size_t c = 0; c < holders.size(); ++c) {
      if (holders[c] != 1) return fmt::format("chunk {} has {} holders", c, holders[c]);
    }
    if (hot_pages != stats_.hot_pages || sealed_pages != stats_.sealed_pages) {
      return fmt::format("{} hot and {} sealed pages, counted {} and {}", hot_pages, sealed_pages,
                         stats_.hot_pages, stats_.sealed_pages);
    }
    return {};
  }

  std::span<const std::byte> sealed_bytes(KvSequence handle, int page, int layer,
                                          int kv_head) const override {
    const Sequence& s = sequences_[handle];
    if (page >= max_pages_ || s.sealed_layers[page] <= layer) return {};
    return {s.sealed[page] + sealed_stride_ * (layer * geometry_.n_kv_heads + kv_head),
            kernels::sealed_page_bytes(geometry_.head_dim)};
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

  void release_hot(Sequence& s, int page) {
    if (s.hot_chunk[page] == kNone) return;
    pool_.give(s.hot_chunk[page]);
    s.hot_chunk[page] = kNone;
    s.hot[page] = nullptr;
    --stats_.hot_pages;
  }

  // Seals in this layer what these rows read as INT2. The last row's page decides for all of them:
  // a page it reads as INT2 is final, and rows before it still find the 16-bit copy.
  void seal(int layer, std::span<const KvRows> rows, kernels::ThreadPool& pool) {
    to_seal_.clear();
    for (const KvRows& r : rows) {
      Sequence& s = sequence(r.sequence);
      const std::int64_t last_page = (r.first_position + r.n_rows - 1) / kPageTokens;
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
      kernels::seal_page(page.hot + hot_stride_ * index, calibration_->layer(options_.mode, layer)[task % heads],
                         geometry_.head_dim, page.sealed + sealed_stride_ * index);
    });
  }

  void count_int2_reads(const KvRows& r) {
    const std::int64_t last = (r.first_position + r.n_rows - 1) / kPageTokens;
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
  const int sealed_per_chunk_, max_pages_;
  Pool pool_;
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
  const std::size_t slab =
      kernels::hot_page_bytes(geometry.head_dim) * geometry.n_layers * geometry.n_kv_heads;
  if (options.memory_bytes < slab) {
    return bad(
        fmt::format("memory_bytes {} is less than one page of {}", options.memory_bytes, slab));
  }
  auto cache = std::make_unique<PagedKvCache>(geometry, options, std::move(calibration));
  if (!cache->ok()) {
    return Error{ErrorCode::kOutOfRange,
                 fmt::format("kv cache: cannot map {} bytes", options.memory_bytes)};
  }
  return std::unique_ptr<KvCache>(std::move(cache));
}

}  // namespace foretoken
