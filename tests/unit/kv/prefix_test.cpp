// The prefix cache: whatever a sequence resumes from, its rows' attention is what it is without;
// and every reference into the pool is accounted for, whatever is kept, shared, evicted, gathered
// or forgotten.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "runtime/kv/calibration.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/kv/page_pool.h"
#include "tests/support/faulty_pages.h"
#include "tests/unit/kv/synthetic.h"

namespace foretoken::kv_test::prefix {
namespace {

constexpr KvGeometry kGeometry{.n_layers = 2, .n_heads = 2, .n_kv_heads = 1, .head_dim = 32};
constexpr int kQ = 2 * 32, kK = 32;
using Tokens = std::vector<TokenId>;

KvOptions options_for(KvMode mode, int pages, int tail_pages, int window = 128) {
  const std::size_t slab = kernels::hot_page_bytes(32) * 2;
  return {.mode = mode,
          .sink_tokens = 64,
          .window_tokens = window,
          .memory_bytes = slab * static_cast<std::size_t>(pages),
          .max_sequences = 3,
          .max_rows = 256,
          .max_model_len = 2048,
          .tail_bytes = slab * static_cast<std::size_t>(tail_pages)};
}
std::unique_ptr<KvCache> make(const KvOptions& options, const MakeKvPages& pages = {}) {
  auto cache = KvCache::create(kGeometry, options, KvCalibration::data_free(kGeometry), pages);
  EXPECT_TRUE(cache) << cache.error().message;
  return std::move(*cache);
}

PageChain chain_of(const Tokens& tokens, std::string_view scope = "a", std::uint64_t owner = 1) {
  PageChain chain(hash_bytes(scope), owner, 2048);
  chain.extend(tokens);
  return chain;
}

Tokens text(std::uint64_t seed, int n) {
  std::mt19937_64 random(seed);
  Tokens tokens;
  for (int i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>(random() % 50000));
  return tokens;
}
Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Rows [first, first + n) of a sequence: q, k, v are a function of (token, position, layer) alone.
// Rows from `rejected` on are drafts of other tokens. Returns [n, n_layers, n_heads * d].
std::vector<float> run(KvCache& cache, kernels::ThreadPool& pool, KvSequence sequence,
                       const Tokens& tokens, std::int64_t first, int n, int rejected = 1 << 30) {
  std::vector<float> result(static_cast<std::size_t>(n) * 2 * kQ);
  for (int layer = 0; layer < 2; ++layer) {
    std::vector<float> q, k, v, out(static_cast<std::size_t>(n) * kQ);
    for (int i = 0; i < n; ++i) {
      const auto position = static_cast<std::uint64_t>(first + i);
      const auto token =
          static_cast<std::uint64_t>(tokens[position]) + (i >= rejected ? 1'000'000u : 0u);
      std::mt19937_64 random(token * 1000003 + position * 31 + static_cast<std::uint64_t>(layer));
      for (auto [x, width] : {std::pair{&q, kQ}, {&k, kK}, {&v, kK}}) {
        const auto row = normal(width, random);
        x->insert(x->end(), row.begin(), row.end());
      }
    }
    const KvRows rows{sequence, first, n, 0};
    cache.store(layer, {&rows, 1}, k.data(), kK, v.data(), kK);
    cache.attend(layer, {&rows, 1}, q.data(), kQ, out.data(), kQ, 0.17f, pool);
    for (int i = 0; i < n; ++i)
      std::copy_n(out.begin() + i * kQ, kQ, result.begin() + (i * 2 + layer) * kQ);
  }
  return result;
}

// Everything of a request, from where it resumes; [rows computed, n_layers, n_heads * d].
struct Done {
  std::int64_t resumed = 0;
  std::vector<float> out;
};
Done serve(KvCache& cache, kernels::ThreadPool& pool, const Tokens& tokens, int n_prompt,
           int chunk = 100, bool keep = true, std::string_view scope = "a",
           std::uint64_t owner = 1) {
  const KvSequence s = *cache.open();
  const PageChain prompt = chain_of({tokens.begin(), tokens.begin() + n_prompt}, scope, owner);
  Done done;
  done.resumed = cache.resume(s, prompt, n_prompt, n_prompt - 1);
  for (auto at = done.resumed; at < static_cast<std::int64_t>(tokens.size());) {
    const auto end = at < n_prompt ? static_cast<std::int64_t>(n_prompt)
                                   : std::min<std::int64_t>(std::ssize(tokens), at + 1);
    const int n = static_cast<int>(std::min<std::int64_t>(chunk, end - at));
    EXPECT_TRUE(cache.reserve(s, at + n));
    const auto rows = run(cache, pool, s, tokens, at, n);
    cache.commit(s, at += n);
    done.out.insert(done.out.end(), rows.begin(), rows.end());
  }
  if (keep)
    cache.close_and_keep(s, chain_of(tokens, scope, owner));
  else
    cache.close(s);
  EXPECT_EQ(cache.validate(), "");
  return done;
}

void expect_equal_rows(const Done& got, const std::vector<float>& want, const std::string& what) {
  const auto skipped = static_cast<std::size_t>(got.resumed) * 2 * kQ;
  ASSERT_EQ(got.out.size() + skipped, want.size()) << what;
  EXPECT_EQ(0, std::memcmp(got.out.data(), want.data() + skipped, got.out.size() * 4)) << what;
}

std::vector<float> plain(KvMode mode, const Tokens& tokens, int n_prompt, int window = 128) {
  kernels::ThreadPool pool(1);
  auto cache = make(options_for(mode, 80, 0, window));
  return serve(*cache, pool, tokens, n_prompt, 64, false).out;
}

class PrefixCache : public ::testing::TestWithParam<KvMode> {
 protected:
  kernels::ThreadPool pool_{1};
};

// A prompt that ends in each page leaves a tail at its last border; another one resumes there.
TEST_P(PrefixCache, ResumesAtEveryBorder) {
  auto cache = make(options_for(GetParam(), 200, 150));
  const Tokens all = text(1, 900);
  for (int border = 64; border <= 832; border += 64) {
    const Tokens shorter(all.begin(), all.begin() + border + 1);
    serve(*cache, pool_, shorter, border + 1);
    const Tokens tokens =
        joined({all.begin(), all.begin() + border}, text(static_cast<std::uint64_t>(border), 200));
    const Done got = serve(*cache, pool_, tokens, border + 100, 70);
    EXPECT_EQ(got.resumed, border);
    expect_equal_rows(got, plain(GetParam(), tokens, border + 100), std::to_string(border));
  }
  // Those on the way had sealed what the whole now finds sealed.
  const Done got = serve(*cache, pool_, all, 900);
  EXPECT_EQ(got.resumed, 832);
  expect_equal_rows(got, plain(GetParam(), all, 900), "all");
  EXPECT_EQ(cache->stats().used_bytes, 0u);
}

// Prompt's last border, answer's last border, and where two requests diverged: the third finds it.
TEST_P(PrefixCache, TailsAreKeptWhereRequestsEndAndPart) {
  auto cache = make(options_for(GetParam(), 200, 100));
  const bool everywhere = GetParam() == KvMode::kBf16;  // nothing is sealed: every border is one
  const Tokens system = text(7, 600);
  const Tokens first = joined(system, text(8, 300));
  EXPECT_EQ(serve(*cache, pool_, first, 700).resumed, 0);
  EXPECT_EQ(cache->stats().tails, everywhere ? 0 : 2);
  // Its prompt (700) is continued with another answer, its answer (900) with another turn.
  const Tokens regenerated = joined({first.begin(), first.begin() + 700}, text(9, 80));
  Done got = serve(*cache, pool_, regenerated, 700);
  EXPECT_EQ(got.resumed, 640);
  expect_equal_rows(got, plain(GetParam(), regenerated, 700), "regenerated");
  const Tokens turn = joined(first, text(10, 100));
  got = serve(*cache, pool_, turn, 980);
  EXPECT_EQ(got.resumed, 896);
  expect_equal_rows(got, plain(GetParam(), turn, 980), "turn");
  // 576 tokens are shared with another question; only the third to ask resumes there. (After the
  // sink, which is always in 16 bits, everybody can.)
  for (int i = 0; i < 2; ++i) {
    const Tokens question = joined(system, text(20 + static_cast<std::uint64_t>(i), 250));
    got = serve(*cache, pool_, question, 800);
    EXPECT_EQ(got.resumed, i == 0 && !everywhere ? 64 : 576);
    expect_equal_rows(got, plain(GetParam(), question, 800), "question");
  }
}

TEST_P(PrefixCache, AbortedForgottenAndOtherScopesFindNothing) {
  auto cache = make(options_for(GetParam(), 200, 100));
  const Tokens tokens = text(3, 700);
  serve(*cache, pool_, tokens, 600, 100, false);
  EXPECT_EQ(cache->stats().cached_pages, 0);
  EXPECT_EQ(serve(*cache, pool_, tokens, 600).resumed, 0);
  EXPECT_EQ(serve(*cache, pool_, tokens, 600, 100, true, "b", 2).resumed, 0);
  EXPECT_EQ(serve(*cache, pool_, tokens, 600, 100, true, "b", 2).resumed, 576);
  const std::int64_t both = cache->stats().cached_pages;
  cache->forget(1);
  EXPECT_EQ(cache->validate(), "");
  EXPECT_EQ(cache->stats().cached_pages, both / 2);
  EXPECT_EQ(serve(*cache, pool_, tokens, 600, 100, false).resumed, 0);
  EXPECT_EQ(serve(*cache, pool_, tokens, 600, 100, false, "b", 2).resumed, 576);
  cache->forget(2);
  EXPECT_EQ(cache->stats().cached_pages, 0);
  EXPECT_EQ(cache->stats().cached_bytes, 0u);
}

// Requests of a few families that share beginnings, several open at once, prefilled in chunks and
// decoded with rejected drafts, some aborted, in a pool too small to keep them all.
TEST_P(PrefixCache, NothingChangesUnderRandomTraffic) {
  std::map<Tokens, std::vector<float>> wanted;
  for (const std::uint64_t seed : {1, 2, 3}) {
    std::mt19937_64 random(seed);
    const auto below = [&](int n) {
      return static_cast<int>(random() % static_cast<std::uint64_t>(n));
    };
    auto cache = make(options_for(GetParam(), GetParam() == KvMode::kBf16 ? 36 : 22, 8, 64));
    struct Open {
      KvSequence kv;
      Tokens tokens;
      int n_prompt;
      std::int64_t resumed, done;
      std::vector<float> out;
    };
    std::vector<Open> open;
    int hits = 0, aborted = 0, preempted = 0, whole = 0;
    const auto enough = [&] {
      return hits > 10 && whole > 15 && aborted + preempted > 5 &&
             cache->stats().evicted_pages_total > 20;
    };
    for (int step = 0; step < 6000 && !enough(); ++step) {
      if (open.size() < 3 && below(4) == 0) {
        const auto family = static_cast<std::uint64_t>(below(3));
        Tokens tokens = text(family, 100 + 150 * below(3));
        tokens =
            joined(tokens, text(10 + static_cast<std::uint64_t>(below(3)), 60 + 64 * below(4)));
        const int n_prompt = static_cast<int>(tokens.size());
        tokens =
            joined(tokens, text(30 + static_cast<std::uint64_t>(below(2)), 20 + below(2) * 90));
        const KvSequence kv = *cache->open();
        const auto at = cache->resume(kv, chain_of({tokens.begin(), tokens.begin() + n_prompt}),
                                      n_prompt, n_prompt - 1);
        hits += at > 0;
        open.push_back({kv, tokens, n_prompt, at, at, {}});
      } else if (!open.empty()) {
        const std::size_t which = static_cast<std::size_t>(below(static_cast<int>(open.size())));
        Open& o = open[which];
        const auto end = static_cast<std::int64_t>(o.tokens.size());
        if (below(25) == 0) {
          cache->close(o.kv);
          open.erase(open.begin() + static_cast<std::ptrdiff_t>(which));
          ++aborted;
        } else if (o.done == end) {
          cache->close_and_keep(o.kv, chain_of(o.tokens));
          auto& want = wanted[o.tokens];
          if (want.empty()) want = plain(GetParam(), o.tokens, o.n_prompt, 64);
          expect_equal_rows({o.resumed, o.out}, want, std::to_string(seed));
          open.erase(open.begin() + static_cast<std::ptrdiff_t>(which));
          ++whole;
        } else {
          const bool prefill = o.done < o.n_prompt;
          const int n = static_cast<int>(std::min<std::int64_t>(
              1 + below(prefill ? 150 : 12), (prefill ? o.n_prompt : end) - o.done));
          const int accepted = prefill ? n : 1 + below(n);
          if (!cache->reserve(o.kv, o.done + n)) {
            cache->close(o.kv);
            open.erase(open.begin() + static_cast<std::ptrdiff_t>(which));
            ++preempted;
          } else {
            const auto rows = run(*cache, pool_, o.kv, o.tokens, o.done, n, accepted);
            cache->commit(o.kv, o.done += accepted);
            o.out.insert(o.out.end(), rows.begin(), rows.begin() + accepted * 2 * kQ);
          }
        }
      }
      ASSERT_EQ(cache->validate(), "") << seed << " step " << step;
      if (::testing::Test::HasFailure()) return;
    }
    EXPECT_TRUE(enough()) << hits << " hits, " << whole << " whole, " << aborted << " aborted, "
                          << preempted << " preempted: the test proves less";
    for (const Open& o : open) cache->close(o.kv);
    const KvStats stats = cache->stats();
    EXPECT_EQ(stats.used_bytes, 0u);
    EXPECT_GT(stats.cached_bytes, 0u);
    cache->forget(1);
    EXPECT_EQ(cache->stats().cached_bytes, 0u);
    EXPECT_EQ(cache->validate(), "");
  }
}
INSTANTIATE_TEST_SUITE_P(Modes, PrefixCache, ::testing::Values(KvMode::kBf16, KvMode::kInt2),
                         [](const auto& info) { return std::string(kv_mode_name(info.param)); });

// Negative control: with the codes alone, rows read what they should have read in 16 bits.
TEST(PrefixCacheInt2, ResumingFromCodesIsCaught) {
  const Tokens system = text(7, 600), first = joined(system, text(8, 300)),
               second = joined(system, text(9, 200)), third = joined(system, text(10, 200));
  const auto want = plain(KvMode::kInt2, third, 700);
  for (const bool fault : {false, true}) {
    kernels::ThreadPool pool(1);
    auto cache =
        make(options_for(KvMode::kInt2, 200, 100),
             fault ? testing::faulty_pages(testing::PageFault::kResumeFromCodes) : MakeKvPages());
    serve(*cache, pool, first, 700);
    EXPECT_EQ(serve(*cache, pool, second, 700).resumed, 64);  // no tail is held after the sink
    const Done got = serve(*cache, pool, third, 700);
    EXPECT_EQ(got.resumed, 576);  // the second left one where it went its own way
    const std::size_t skipped = static_cast<std::size_t>(got.resumed) * 2 * kQ;
    EXPECT_EQ(fault, 0 != std::memcmp(got.out.data(), want.data() + skipped, got.out.size() * 4));
  }
}

// Tails beyond the budget go, the least recently used first, and with them what only they held;
// an earlier tail serves.
TEST(PrefixCacheInt2, TailsHaveABudgetOfTheirOwn) {
  kernels::ThreadPool pool(1);
  auto cache = make(options_for(KvMode::kInt2, 200, 5));  // a tail is two pages or three
  const Tokens a = text(1, 700), b = text(2, 700);
  serve(*cache, pool, a, 400);
  EXPECT_EQ(cache->stats().tails, 2);
  serve(*cache, pool, b, 400);
  EXPECT_EQ(cache->stats().tails, 2);
  EXPECT_EQ(cache->stats().evicted_tails_total, 2);
  EXPECT_EQ(serve(*cache, pool, a, 690, 100, false).resumed, 64);  // after the sink
  EXPECT_EQ(serve(*cache, pool, b, 690, 100, false).resumed, 640);
  auto none = make(options_for(KvMode::kInt2, 200, 0));
  serve(*none, pool, a, 400);
  EXPECT_EQ(none->stats().tails, 0);
  EXPECT_EQ(serve(*none, pool, a, 690, 100, false).resumed, 64);
}

// What is cached is free for whoever needs it: a sequence that fills the pool gets all of it.
TEST(PrefixCacheInt2, CachedPagesMakeRoom) {
  kernels::ThreadPool pool(1);
  for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2}) {
    auto cache = make(options_for(mode, 13, 6));
    for (std::uint64_t i = 0; i < 6; ++i)
      serve(*cache, pool, text(i, 300 + 40 * static_cast<int>(i)), 250);
    EXPECT_GT(cache->stats().cached_bytes, 0u);
    const auto length = static_cast<int>(cache->capacity_tokens());
    const Tokens longest = text(50, length);
    const Done got = serve(*cache, pool, longest, length - 20, 256);
    EXPECT_EQ(got.out.size(), static_cast<std::size_t>(length) * 2 * kQ);
    // A conversation that grows until it needs all of it, its own tails along the way included.
    const Tokens turns = text(51, length);
    for (int n = 200; n < length; n = std::min(length, n + 90)) {
      const Tokens now(turns.begin(), turns.begin() + n);
      serve(*cache, pool, now, n - 30, 256);
    }
    const Done all = serve(*cache, pool, turns, length - 20, 256);
    EXPECT_GT(all.resumed, 0);
  }
}

TEST(PagePool, GathersWhatIsScattered) {
  PagePool pool(1000, 300, 4000);  // three sealed slabs a chunk
  std::vector<std::byte> memory(pool.bytes());
  pool.place(memory.data());
  ASSERT_TRUE(pool.ok());
  std::vector<Slab> slabs;
  for (int i = 0; i < 12; ++i) {
    slabs.push_back(pool.take(SlabKind::kSealed));
    std::memset(pool.at(SlabKind::kSealed, slabs.back()), i, 300);
  }
  EXPECT_FALSE(pool.fits(0, 1));
  std::map<Slab, int> held;  // one of each chunk stays
  for (int i = 0; i < 12; ++i) {
    if (i % 3 == 1)
      held[slabs[static_cast<std::size_t>(i)]] = i;
    else
      pool.drop(SlabKind::kSealed, slabs[static_cast<std::size_t>(i)]);
  }
  EXPECT_TRUE(pool.fits(0, 8));
  EXPECT_FALSE(pool.fits(1, 0));
  const auto moved = [&](SlabKind kind, Slab from, Slab to) {
    EXPECT_EQ(kind, SlabKind::kSealed);
    EXPECT_FALSE(held.contains(to));
    std::memcpy(pool.at(kind, to), pool.at(kind, from), 300);
    held[to] = held.at(from);
    held.erase(from);
  };
  EXPECT_TRUE(pool.compact(moved));
  EXPECT_TRUE(pool.fits(1, 0));
  EXPECT_TRUE(pool.compact(moved));
  EXPECT_TRUE(pool.fits(2, 2));
  EXPECT_FALSE(pool.compact(moved));  // two holes are less than a chunk
  std::array<std::vector<int>, 2> holders;
  holders[0].assign(4, 0);
  holders[1].assign(12, 0);
  for (const auto& [slab, i] : held) {
    holders[1][static_cast<std::size_t>(slab)] = 1;
    for (int byte = 0; byte < 300; ++byte)
      ASSERT_EQ(pool.at(SlabKind::kSealed, slab)[byte], static_cast<std::byte>(i));
  }
  EXPECT_EQ(pool.validate(holders), nullptr);
}

TEST(PageChain, NamesDependOnAllThatComesBefore) {
  Tokens a = text(1, 200), b = a;
  b[0] += 1;
  const PageChain ca = chain_of(a), cb = chain_of(b), other = chain_of(a, "b");
  ASSERT_EQ(ca.pages().size(), 3u);
  for (std::size_t p = 0; p < 3; ++p) {
    EXPECT_NE(ca.pages()[p], cb.pages()[p]);
    EXPECT_NE(ca.pages()[p], other.pages()[p]);
  }
  PageChain grown(hash_bytes("a"), 1, 2048);
  for (std::size_t n = 1; n <= a.size(); ++n) grown.extend(std::span(a).first(n));
  EXPECT_TRUE(std::ranges::equal(grown.pages(), ca.pages()));
}

}  // namespace
}  // namespace foretoken::kv_test::prefix
