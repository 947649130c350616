// The cache's laws: pages are conserved, a row's output and a sealed page's bytes do not depend on
// drafts, chunking or neighbours, and memory comes back.
#include "runtime/kv/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "runtime/kv/calibration.h"
#include "tests/unit/kv/synthetic.h"

namespace foretoken::kv_test {
namespace {

constexpr KvGeometry kGeometry{.n_layers = 3, .n_heads = 4, .n_kv_heads = 2, .head_dim = 32};

KvOptions options_for(KvMode mode, int pages, int max_sequences = 3, int window = 64) {
  return {.mode = mode,
          .sink_tokens = 64,
          .window_tokens = window,
          .memory_bytes = kernels::hot_page_bytes(32) * 3 * 2 * pages,
          .max_sequences = max_sequences,
          .max_rows = 256,
          .max_model_len = 2048};
}
// Pages whose bytes a test may look at, of the caches that make() made.
struct OpenPages : HostKvPages {
  using HostKvPages::HostKvPages;
  using HostKvPages::part;
};
std::map<const KvCache*, const OpenPages*> pages_of;

std::unique_ptr<KvCache> make(const KvOptions& options) {
  const OpenPages* made = nullptr;
  auto cache = KvCache::create(
      kGeometry, options, KvCalibration::data_free(kGeometry),
      [&](const KvLayout& layout, std::shared_ptr<const KvCalibration> calibration) {
        auto pages = std::make_unique<OpenPages>(layout, std::move(calibration));
        made = pages.get();
        return pages;
      });
  EXPECT_TRUE(cache) << cache.error().message;
  pages_of[cache->get()] = made;
  return std::move(*cache);
}

// The bytes of a page, empty if there are none.
std::vector<std::byte> page_bytes(const KvCache& cache, KvSequence sequence, int page,
                                  SlabKind kind, int layer, int head) {
  const OpenPages& pages = *pages_of.at(&cache);
  const bool hot = kind == SlabKind::kHot;
  if (hot ? !pages.slab(sequence, page, kind) : !cache.sealed(sequence, page, layer)) return {};
  const std::byte* at = pages.part(sequence, page, kind, layer, head);
  return {at, at + (hot ? kernels::hot_page_bytes(32)
                        : kernels::sealed_page_bytes(cache.options().mode, 32))};
}

// Runs rows whose q, k, v are a function of (text, position, layer) alone; returns the attention
// outputs of all layers, [n_rows, n_layers, n_heads * d].
std::vector<float> run(KvCache& cache, kernels::ThreadPool& pool, KvSequence sequence,
                       std::int64_t first, int n, std::uint64_t text,
                       std::int64_t drafted_from = 1 << 30) {
  constexpr int kq = 4 * 32, kk = 2 * 32;
  std::vector<float> result(static_cast<std::size_t>(n) * 3 * kq);
  for (int layer = 0; layer < 3; ++layer) {
    std::vector<float> q, k, v, out(n * kq);
    for (int i = 0; i < n; ++i) {
      const std::uint64_t what = first + i >= drafted_from ? text + 7777 : text;
      std::mt19937_64 random(what * 1000003 + (first + i) * 31 + layer);
      for (auto [x, width] : {std::pair{&q, kq}, {&k, kk}, {&v, kk}}) {
        const auto row = normal(width, random);
        x->insert(x->end(), row.begin(), row.end());
      }
    }
    const KvRows rows{sequence, first, n, 0};
    cache.store(layer, {&rows, 1}, k.data(), kk, v.data(), kk);
    cache.attend(layer, {&rows, 1}, q.data(), kq, out.data(), kq, 0.17f, pool);
    for (int i = 0; i < n; ++i) {
      std::copy_n(out.begin() + i * kq, kq,
                  result.begin() + (static_cast<std::ptrdiff_t>(i) * 3 + layer) * kq);
    }
  }
  return result;
}

std::vector<std::byte> all_sealed(const KvCache& cache, KvSequence sequence) {
  std::vector<std::byte> bytes;
  for (int page = 0; page < 32; ++page) {
    for (int layer = 0; layer < 3; ++layer) {
      for (int head = 0; head < 2; ++head) {
        const auto blob = page_bytes(cache, sequence, page, SlabKind::kSealed, layer, head);
        bytes.insert(bytes.end(), blob.begin(), blob.end());
      }
    }
  }
  return bytes;
}

// One by one, no drafts, no neighbours.
struct Reference {
  std::vector<float> out;
  std::vector<std::byte> sealed;
  std::int64_t reads;
};
Reference reference(KvMode mode, int length, std::uint64_t text) {
  kernels::ThreadPool pool(1);
  auto cache = make(options_for(mode, 40));
  const KvSequence s = *cache->open();
  Reference r;
  for (int t = 0; t < length; ++t) {
    EXPECT_TRUE(cache->reserve(s, t + 1));
    const auto row = run(*cache, pool, s, t, 1, text);
    cache->commit(s, t + 1);
    r.out.insert(r.out.end(), row.begin(), row.end());
  }
  r.sealed = all_sealed(*cache, s);
  r.reads = cache->stats().sealed_page_reads_total;
  return r;
}

// A tree of drafted rows after a committed one, its path kept: outputs on the path and every sealed
// byte are a plain run's. Row i of the tree is node i of text `nodes[i]` at its depth.
TEST(KvCacheTrees, AKeptPathLeavesWhatAPlainRunLeaves) {
  constexpr int kLength = 560, kq = 4 * 32, kk = 2 * 32;
  for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2}) {
    const Reference want = reference(mode, kLength, 1);
    kernels::ThreadPool pool(2);
    auto cache = make(options_for(mode, 40));
    const KvSequence s = *cache->open();
    std::vector<float> out;
    std::mt19937_64 random(5);
    int siblings = 0;
    for (std::int64_t done = 0; done < kLength;) {
      const int most = static_cast<int>(std::min<std::int64_t>(kLength - done, 24));
      // The path that is kept: rows of text 1; beside it, before and after, rows of other texts.
      std::vector<std::int32_t> parents;
      std::vector<int> path = {0};
      for (int row = 1; row < most; ++row) {
        const bool kept = random() % 2 == 0;
        parents.push_back((kept ? path.back() : static_cast<int>(random() % row)) - 1);
        if (kept) path.push_back(row);
        siblings += !kept;
      }
      ASSERT_TRUE(cache->reserve(s, done + most));
      const KvRows rows{s, done, most, 0, parents.data()};
      std::vector<float> outs(static_cast<std::size_t>(most) * 3 * kq);
      for (int layer = 0; layer < 3; ++layer) {
        std::vector<float> q, k, v, o(most * kq);
        for (int row = 0; row < most; ++row) {
          const bool kept = std::find(path.begin(), path.end(), row) != path.end();
          const auto position = static_cast<std::uint64_t>(rows.position(row));
          std::mt19937_64 noise((kept ? 1 : 7000 + row) * 1000003ull + position * 31 + layer);
          for (auto [x, width] : {std::pair{&q, kq}, {&k, kk}, {&v, kk}}) {
            const auto values = normal(width, noise);
            x->insert(x->end(), values.begin(), values.end());
          }
        }
        cache->store(layer, {&rows, 1}, k.data(), kk, v.data(), kk);
        cache->attend(layer, {&rows, 1}, q.data(), kq, o.data(), kq, 0.17f, pool);
        for (std::size_t i = 0; i < path.size(); ++i)
          std::copy_n(o.begin() + path[i] * kq, kq,
                      outs.begin() + static_cast<int>(i * 3 + layer) * kq);
      }
      cache->keep_path(s, done, path);
      done += static_cast<std::int64_t>(path.size());
      cache->commit(s, done);
      out.insert(out.end(), outs.begin(),
                 outs.begin() + static_cast<std::ptrdiff_t>(path.size()) * 3 * kq);
      ASSERT_EQ(cache->validate(), "");
    }
    EXPECT_GT(siblings, 100);
    ASSERT_EQ(out.size(), want.out.size());
    EXPECT_EQ(0, std::memcmp(out.data(), want.out.data(), out.size() * 4));
    EXPECT_EQ(all_sealed(*cache, s), want.sealed);
  }
}

class KvCacheLaws : public ::testing::TestWithParam<KvMode> {};

TEST_P(KvCacheLaws, DraftsChunksAndNeighboursChangeNothing) {
  constexpr int kLength = 700;
  const Reference want = reference(GetParam(), kLength, 1);
  EXPECT_EQ(want.reads > 0, GetParam() != KvMode::kBf16);
  for (const std::uint64_t seed : {1, 2, 3, 4}) {
    std::mt19937_64 random(seed);
    kernels::ThreadPool pool(1 + seed % 3);
    auto cache = make(options_for(GetParam(), 40));
    const KvSequence other = *cache->open(), s = *cache->open();
    std::vector<float> out;
    int rejected = 0;
    std::int64_t done = 0, other_done = 0;
    while (done < kLength) {
      // A neighbour's pages come and go in between.
      if (random() % 4 == 0 && other_done < 1500) {
        const int n = 1 + static_cast<int>(random() % 60);
        ASSERT_TRUE(cache->reserve(other, other_done + n));
        run(*cache, pool, other, other_done, n, 99);
        cache->commit(other, other_done += n);
      }
      const bool prefill = done < 200;
      const int n = static_cast<int>(
          std::min<std::int64_t>(1 + random() % (prefill ? 200 : 60), kLength - done));
      const int accepted = prefill ? n : 1 + static_cast<int>(random() % n);
      ASSERT_TRUE(cache->reserve(s, done + n));
      const auto rows = run(*cache, pool, s, done, n, 1, done + accepted);
      cache->commit(s, done + accepted);
      out.insert(out.end(), rows.begin(),
                 rows.begin() + static_cast<std::ptrdiff_t>(accepted) * 3 * 128);
      done += accepted;
      rejected += n - accepted;
      ASSERT_EQ(cache->validate(), "");
    }
    EXPECT_GT(rejected, 100);
    ASSERT_EQ(out.size(), want.out.size());
    EXPECT_EQ(0, std::memcmp(out.data(), want.out.data(), out.size() * 4)) << seed;
    EXPECT_EQ(all_sealed(*cache, s), want.sealed) << seed;
  }
}
INSTANTIATE_TEST_SUITE_P(Modes, KvCacheLaws,
                         ::testing::ValuesIn(kv_modes().begin(), kv_modes().end()),
                         [](const auto& info) {
                           std::string name(kv_mode_name(info.param));
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Negative control of law 2: had a drafted token been in a page when it was sealed, the bytes would
// differ.
TEST(KvCache, ADraftedTokenInASealWouldShow) {
  const Reference want = reference(KvMode::kInt2, 400, 1);
  kernels::ThreadPool pool(1);
  auto cache = make(options_for(KvMode::kInt2, 40));
  const KvSequence s = *cache->open();
  for (int t = 0; t < 400; ++t) {
    ASSERT_TRUE(cache->reserve(s, t + 1));
    run(*cache, pool, s, t, 1, 1,
        t == 100 ? 100 : 1 << 30);  // position 100 keeps its draft's K and V
    cache->commit(s, t + 1);
  }
  const auto sealed = all_sealed(*cache, s);
  ASSERT_EQ(sealed.size(), want.sealed.size());
  EXPECT_NE(sealed, want.sealed);
}

TEST(KvCacheDeathTest, WhatWouldBreakTheLawsStops) {
  kernels::ThreadPool pool(1);
  auto cache = make(options_for(KvMode::kInt2, 40));
  const KvSequence s = *cache->open();
  ASSERT_TRUE(cache->reserve(s, 600));
  EXPECT_DEATH(run(*cache, pool, s, 10, 1, 1), "gap");
  EXPECT_DEATH(run(*cache, pool, s, 0, 700, 1), "nothing is reserved");
  run(*cache, pool, s, 0, 190, 1);
  cache->commit(s, 190);
  run(*cache, pool, s, 190, 20, 1);  // seals page 1
  EXPECT_DEATH(run(*cache, pool, s, 100, 1, 1), "sealed page");
  EXPECT_DEATH(cache->commit(s, 189), "goes back");
  cache->close(s);
  EXPECT_DEATH(cache->commit(s, 1), "not an open sequence");
}

TEST(KvCache, TheHotCopyGoesOnlyWhenNobodyCanReadIt) {
  kernels::ThreadPool pool(1);
  auto cache = make(options_for(KvMode::kInt2, 40));
  const KvSequence s = *cache->open();
  ASSERT_TRUE(cache->reserve(s, 256 + 20));
  run(*cache, pool, s, 0, 190, 1);
  cache->commit(s, 190);
  EXPECT_EQ(cache->stats().sealed_pages_total, 0);
  // A verify block across the border at 192: its rows of page 3 read page 1 as INT2, those of page
  // 2 in 16 bits.
  run(*cache, pool, s, 190, 20, 1, 191);
  EXPECT_EQ(cache->stats().sealed_pages_total, 1);
  cache->commit(s, 191);  // all drafts rejected: page 1 is still read in 16 bits
  EXPECT_FALSE(page_bytes(*cache, s, 1, SlabKind::kHot, 0, 0).empty());
  EXPECT_FALSE(page_bytes(*cache, s, 1, SlabKind::kSealed, 2, 1).empty());
  run(*cache, pool, s, 191, 1, 1);
  cache->commit(s, 192);
  EXPECT_TRUE(page_bytes(*cache, s, 1, SlabKind::kHot, 0, 0).empty());
  EXPECT_FALSE(page_bytes(*cache, s, 0, SlabKind::kHot, 0, 0).empty());  // the sink stays
  EXPECT_EQ(cache->validate(), "");
}

TEST(KvCache, APageSealedAtACommittedBorderWaitsForItsRow) {
  kernels::ThreadPool pool(1);
  auto cache = make(options_for(KvMode::kInt2, 40));
  const KvSequence s = *cache->open();
  ASSERT_TRUE(cache->reserve(s, 193));
  run(*cache, pool, s, 0, 192, 1);
  cache->commit(s, 192);  // the next row reads page 1 as INT2, none has yet
  EXPECT_FALSE(page_bytes(*cache, s, 1, SlabKind::kHot, 0, 0).empty());
  run(*cache, pool, s, 192, 1, 1);
  cache->commit(s, 193);
  EXPECT_TRUE(page_bytes(*cache, s, 1, SlabKind::kHot, 0, 0).empty());
}

TEST(KvCache, PagesAreConservedUnderRandomUseAndAborts) {
  for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2}) {
    std::mt19937_64 random(17);
    kernels::ThreadPool pool(2);
    auto cache = make(options_for(mode, 24, 4));
    std::map<KvSequence, std::int64_t> open;
    int refused = 0, aborted = 0;
    for (int step = 0; step < 600; ++step) {
      if (random() % 8 == 0) {
        const auto s = cache->open();
        ASSERT_EQ(s.has_value(), open.size() < 4);
        if (s) open[*s] = 0;
      } else if (!open.empty()) {
        auto it = std::next(open.begin(), static_cast<std::ptrdiff_t>(random() % open.size()));
        auto& [s, done] = *it;
        const std::size_t used = cache->stats().used_bytes;
        const int n = 1 + static_cast<int>(random() % 100);
        if (random() % 30 == 0) {
          cache->close(s);  // aborted, perhaps with a reservation not used
          open.erase(it);
          ++aborted;
        } else if (!cache->reserve(s, done + n)) {
          EXPECT_EQ(cache->stats().used_bytes, used);  // nothing changed
          cache->close(s);
          open.erase(it);
          ++refused;
        } else if (random() % 10 != 0) {  // else: reserved, not run this time
          run(*cache, pool, s, done, n, s);
          const std::int64_t accepted = n > 65 ? n : 1 + static_cast<std::int64_t>(random() % n);
          cache->commit(s, done += accepted);
        }
      }
      ASSERT_EQ(cache->validate(), "") << step;
    }
    EXPECT_GT(refused, 3);
    EXPECT_GT(aborted, 5);
    for (const auto& [s, done] : open) cache->close(s);
    EXPECT_EQ(cache->stats().used_bytes, 0u);
    EXPECT_EQ(cache->stats().hot_pages, 0);
    EXPECT_EQ(cache->validate(), "");
  }
}

// Tokens that a pool of so many 16-bit pages holds, against bf16 in as many bytes; and what
// capacity_tokens() says is what a sequence can fill.
TEST(KvCache, CodedModesHoldSeveralTimesTheTokens) {
  const auto fill = [](KvMode mode) {
    kernels::ThreadPool pool(1);
    KvOptions options = options_for(mode, 20, 1);
    options.max_model_len = 16384;
    options.max_rows = 64;
    auto cache = make(options);
    const KvSequence s = *cache->open();
    std::int64_t done = 0;
    while (cache->reserve(s, done + 64)) {
      run(*cache, pool, s, done, 64, 1);
      cache->commit(s, done += 64);
    }
    EXPECT_GE(done, cache->capacity_tokens()) << kv_mode_name(mode);
    EXPECT_LE(cache->stats().used_bytes, options.memory_bytes);
    return done;
  };
  EXPECT_EQ(fill(KvMode::kBf16), 20 * 64);
  for (const auto& [mode, gain] : {std::pair{KvMode::kInt8, 1.3},
                                   {KvMode::kInt4, 2.2},
                                   {KvMode::kInt2, 3.8},
                                   {KvMode::kInt2Kivi, 2.9},
                                   {KvMode::kInt4Saw, 2.2}}) {
    EXPECT_GT(static_cast<double>(fill(mode)), gain * 20 * 64) << kv_mode_name(mode);
  }

  // At head_dim 128, with the default sink and window, in the memory of 8192 tokens in bf16.
  constexpr KvGeometry geometry{.n_layers = 4, .n_heads = 4, .n_kv_heads = 2, .head_dim = 128};
  const auto capacity = [&](KvMode mode) {
    const auto cache = KvCache::create(geometry,
                                       {.mode = mode,
                                        .memory_bytes = std::size_t{8192} * 512 * 8,
                                        .max_sequences = 1,
                                        .max_rows = 64,
                                        .max_model_len = 1 << 20},
                                       KvCalibration::data_free(geometry));
    EXPECT_TRUE(cache);
    return static_cast<double>((*cache)->capacity_tokens());
  };
  EXPECT_EQ(capacity(KvMode::kBf16), 8192);
  EXPECT_GE(capacity(KvMode::kInt2), 5.5 * 8192);
  EXPECT_GE(capacity(KvMode::kInt4), 3.3 * 8192);
  EXPECT_GE(capacity(KvMode::kInt8), 1.8 * 8192);
}

TEST(KvCache, OptionsThatCannotWorkAreRefusedByName) {
  const auto error = [](KvOptions options, KvGeometry geometry = kGeometry) {
    const auto cache = KvCache::create(geometry, options, nullptr);
    return cache ? std::string() : cache.error().message;
  };
  KvOptions options = options_for(KvMode::kBf16, 4);
  EXPECT_EQ(error(options), "");
  options.window_tokens = 0;
  EXPECT_THAT(error(options), ::testing::HasSubstr("window_tokens 0"));
  options.window_tokens = 100;
  EXPECT_THAT(error(options), ::testing::HasSubstr("window_tokens 100"));
  options = options_for(KvMode::kBf16, 4);
  options.sink_tokens = 3;
  EXPECT_THAT(error(options), ::testing::HasSubstr("sink_tokens 3"));
  options = options_for(KvMode::kBf16, 4);
  options.memory_bytes = 100;
  EXPECT_THAT(error(options), ::testing::HasSubstr("memory_bytes 100"));
  for (const KvMode mode : kv_modes()) {
    const std::string message = error(options_for(mode, 4));
    if (kv_mode_needs_calibration(mode)) {
      EXPECT_THAT(message, ::testing::HasSubstr(std::string(kv_mode_name(mode)) + " needs a"));
    } else {
      EXPECT_EQ(message, "");
    }
  }
  KvGeometry odd = kGeometry;
  odd.head_dim = 40;
  EXPECT_THAT(error(options_for(KvMode::kBf16, 4), odd), ::testing::HasSubstr("head_dim 40"));
}

}  // namespace
}  // namespace foretoken::kv_test
