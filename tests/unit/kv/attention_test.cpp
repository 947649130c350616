// Attention against double arithmetic over what the pages mean, and law 1 as equality of bytes.
#include <gtest/gtest.h>

#include "tests/unit/kv/synthetic.h"

namespace foretoken::kv_test {
namespace {

using kernels::Isa;
using kernels::KvMode;
using kernels::KvTransform;
using kernels::ThreadPool;

struct Shape {
  int d, n_heads, n_kv_heads;
};
constexpr Shape kShapes[] = {{64, 9, 3},  {128, 12, 2}, {80, 4, 4}, {96, 7, 1},
                             {256, 2, 1}, {16, 8, 2},   {64, 14, 2}};

// The head dimensions that models have; fewer heads, since every mode runs over all of them.
constexpr Shape kModeShapes[] = {{64, 6, 2}, {80, 2, 1}, {96, 3, 1}, {128, 5, 1}, {256, 2, 1}};

struct Fixture {
  Shape shape;
  KvMode mode;
  std::vector<OwnedTransform> owned;
  std::vector<KvTransform> transforms;
  std::vector<SyntheticSequence> sequence;
  std::mt19937_64 random;

  Fixture(Shape s, KvMode m, int n_tokens, std::uint64_t seed) : shape(s), mode(m), random(seed) {
    for (int h = 0; h < s.n_kv_heads; ++h) owned.emplace_back(m, s.d, random);
    for (const OwnedTransform& t : owned) transforms.push_back(t.view);
    sequence.emplace_back(n_tokens, s.n_kv_heads, s.d, m, transforms, random);
  }
  std::vector<float> queries(int n) {
    return normal(static_cast<std::size_t>(n) * shape.n_heads * shape.d, random);
  }
};

double relative_error(const Fixture& f, const std::vector<float>& q, const std::vector<float>& out,
                      std::int64_t first, int n, bool coded, int sink, int window) {
  double error = 0, norm = 0;
  const int group = f.shape.n_heads / f.shape.n_kv_heads, d = f.shape.d;
  for (int i = 0; i < n; ++i) {
    for (int h = 0; h < f.shape.n_heads; ++h) {
      const std::size_t at = (static_cast<std::size_t>(i) * f.shape.n_heads + h) * d;
      const auto want = f.sequence[0].attend(q.data() + at, h / group, first + i,
                                             1 / std::sqrt(double(d)), coded, sink, window);
      for (int c = 0; c < d; ++c) {
        error += (out[at + c] - want[c]) * (out[at + c] - want[c]);
        norm += want[c] * want[c];
      }
    }
  }
  return std::sqrt(error / norm);
}

class AttentionTest : public ::testing::TestWithParam<Isa> {};

TEST_P(AttentionTest, MatchesDoubleOver16BitPages) {
  ScopedIsa isa(GetParam());
  ThreadPool pool(2);
  std::mt19937_64 random(3);
  for (const Shape shape : kShapes) {
    Fixture f(shape, KvMode::kInt2, 1100, 11);
    for (const std::int64_t first : {0, 1, 62, 500, 511, 512, 640, 1040, 1084}) {
      const int n = 1 + static_cast<int>(random() % 16);
      const auto q = f.queries(n);
      const auto out = run_attention(f.sequence[0], q, shape.n_heads, first, n, KvMode::kBf16, 1, 4,
                                     f.transforms, pool);
      EXPECT_LE(relative_error(f, q, out, first, n, false, 1, 4), 2e-5)
          << shape.d << " at " << first << " x " << n;
    }
  }
}

TEST_P(AttentionTest, MatchesDoubleOverPackedPages) {
  ScopedIsa isa(GetParam());
  ThreadPool pool(2);
  std::mt19937_64 random(4);
  std::vector<std::pair<KvMode, Shape>> cases;
  for (const Shape shape : kShapes) cases.emplace_back(KvMode::kInt2, shape);
  for (const KvMode mode : sealed_modes()) {
    for (const Shape shape : kModeShapes)
      if (mode != KvMode::kInt2) cases.emplace_back(mode, shape);
  }
  for (const auto& [mode, shape] : cases) {
    if (GetParam() == Isa::kScalar && mode != KvMode::kInt2 && shape.d > 80) continue;  // slow
    Fixture f(shape, mode, 1100, 12);
    for (const int window : {1, 4}) {
      for (const int sink : {0, 1}) {
        // Borders: the first page read by its codes, a verify block across a page border, across a
        // segment.
        for (const std::int64_t first :
             {64 * (window + sink) - 3, 64 * (window + sink + 1) - 2, 637, 1020, 1084}) {
          if (mode != KvMode::kInt2 && sink == 0 && first > 600 && first < 1084) continue;
          const int n = 1 + static_cast<int>(random() % 16);
          const auto q = f.queries(n);
          const auto out = run_attention(f.sequence[0], q, shape.n_heads, first, n, mode, sink,
                                         window, f.transforms, pool);
          EXPECT_LE(relative_error(f, q, out, first, n, true, sink, window), 1e-2)
              << kernels::kv_format(mode).name << " " << shape.d << " at " << first << " x " << n
              << " window " << window;
        }
      }
    }
  }
}

// Negative control for the test above: codes read with the wrong split are outside its tolerance by
// far, at eight bits (whose codes hardly differ from the 16-bit copy) those of a wrong transform.
TEST_P(AttentionTest, AWrongSplitIsFarOff) {
  ScopedIsa isa(GetParam());
  ThreadPool pool(1);
  for (const KvMode mode : sealed_modes()) {
    Fixture f(kModeShapes[0], mode, 700, 13);
    const auto q = f.queries(4);
    const auto out = run_attention(f.sequence[0], q, 6, 600, 4, mode, 1, 4, f.transforms, pool);
    const auto error = [&](int sink, int window) {
      return relative_error(f, q, out, 600, 4, true, sink, window);
    };
    const double right = error(1, 4);
    EXPECT_LE(right, 1e-2);
    if (kernels::kv_format(mode).bits == 2) {
      EXPECT_GT(error(1, 5), 3e-2) << kernels::kv_format(mode).name;
      EXPECT_GT(error(0, 4), 3e-2) << kernels::kv_format(mode).name;
    }
    // The second page in the place of the first.
    std::swap(f.sequence[0].coded_k[1 * 2], f.sequence[0].coded_k[2 * 2]);
    EXPECT_GT(error(1, 4), 3e-2) << kernels::kv_format(mode).name;
  }
}

// Law 1: rows at once, one by one, in any chunks, on any number of threads: the same bytes.
TEST_P(AttentionTest, ARowDoesNotDependOnItsCompany) {
  ScopedIsa isa(GetParam());
  ThreadPool one(1), three(3);
  struct Case {
    Shape shape;
    KvMode mode, read_as;
  };
  std::vector<Case> cases;
  for (const Shape shape : kShapes) {
    for (const KvMode mode : {KvMode::kBf16, KvMode::kInt2})
      cases.push_back({shape, KvMode::kInt2, mode});
  }
  for (const KvMode mode : sealed_modes()) {
    for (const Shape shape : {kModeShapes[0], kModeShapes[2]})
      if (mode != KvMode::kInt2) cases.push_back({shape, mode, mode});
  }
  for (const auto& [shape, mode, read_as] : cases) {
    if (GetParam() == Isa::kScalar && shape.d > 80) continue;  // slow, and the same code
    Fixture f(shape, mode, 1300, 14);
    const int width = shape.n_heads * shape.d, n = 70;
    for (const std::int64_t first : {0, 340, 1110}) {
      const auto q = f.queries(n);
      const auto all = run_attention(f.sequence[0], q, shape.n_heads, first, n, read_as, 1, 1,
                                     f.transforms, three);
      for (const int chunk : {1, 2, 3, 5, 8, 16, 33}) {
        for (int row = 0; row < n; row += chunk) {
          if (chunk < 8 && row > 20 && row < 50) continue;  // borders are at the ends
          const int size = std::min(chunk, n - row);
          const std::vector<float> part(
              q.begin() + static_cast<std::ptrdiff_t>(row) * width,
              q.begin() + static_cast<std::ptrdiff_t>(row + size) * width);
          const auto got = run_attention(f.sequence[0], part, shape.n_heads, first + row, size,
                                         read_as, 1, 1, f.transforms, row % 2 ? one : three);
          ASSERT_EQ(0,
                    std::memcmp(got.data(), all.data() + static_cast<std::ptrdiff_t>(row) * width,
                                got.size() * 4))
              << shape.d << " " << kernels::kv_format(read_as).name << " row " << row << " chunk "
              << chunk << " from " << first;
        }
      }
    }
  }
}

// Tiles add up the same integers, and nothing else differs where 16-bit pages do not go by tiles.
// A tree of drafted rows: every row has the bits that it has as the last of its path's chain,
// alone, whatever its siblings are; across page and segment borders, on one thread and on many.
TEST_P(AttentionTest, ATreesRowHasTheBitsOfItsPathsChain) {
  ScopedIsa isa(GetParam());
  ThreadPool one(1), three(3);
  struct Case {
    Shape shape;
    KvMode mode;
  };
  std::vector<Case> cases = {{kModeShapes[0], KvMode::kBf16}, {kShapes[1], KvMode::kInt2}};
  for (const KvMode mode : sealed_modes()) cases.push_back({kModeShapes[1], mode});
  for (const auto& [shape, mode] : cases) {
    const int width = shape.n_heads * shape.d;
    // In a first page; across a page border that is a segment's too; past a window of codes; with
    // siblings alone past a border.
    for (const std::int64_t first : {0, 507, 1086, 763}) {
      for (const int n : {2, 9, kernels::kTreeRows}) {
        Fixture f(shape, mode, static_cast<int>(first) + n, 15);
        SyntheticSequence& tree = f.sequence[0];
        std::vector<std::int32_t> parents;  // of row i + 1
        for (int i = 0; i + 1 < n; ++i)
          parents.push_back(static_cast<int>(f.random() % 3 == 0 ? f.random() % (i + 1) : i) - 1);
        const auto q = f.queries(n);
        const auto got = run_attention(tree, q, shape.n_heads, first, n, mode, 1, 1, f.transforms,
                                       one, parents.data());
        EXPECT_EQ(got, run_attention(tree, q, shape.n_heads, first, n, mode, 1, 1, f.transforms,
                                     three, parents.data()));
        SyntheticSequence chain = tree;
        for (std::size_t p = 0; p < chain.hot.size(); ++p) {
          chain.hot_pages[p] = chain.hot[p].data();
          chain.sealed_pages[p] = chain.sealed[p].data();
        }
        int siblings = 0;
        for (int row = 0; row < n; ++row) {
          std::vector<int> path;  // last first
          for (int at = row; at > 0; at = parents[at - 1] + 1) path.push_back(at);
          std::reverse(path.begin(), path.end());
          siblings += static_cast<int>(path.size()) < row;
          // The chain: the same pages, the path's rows alone in them.
          for (std::size_t p = static_cast<std::size_t>(first / kPageTokens); p < tree.hot.size();
               ++p)
            chain.hot[p] = tree.hot[p];
          std::vector<float> path_q(q.begin(), q.begin() + width);
          for (std::size_t i = 0; i < path.size(); ++i) {
            const std::int64_t from = first + path[i],
                               to = first + 1 + static_cast<std::int64_t>(i);
            for (int h = 0; h < shape.n_kv_heads; ++h) {
              const std::size_t head = kernels::hot_page_bytes(shape.d) * h;
              kernels::copy_kv(tree.hot[from / kPageTokens].data() + head,
                               static_cast<int>(from % kPageTokens), shape.d,
                               chain.hot[to / kPageTokens].data() + head,
                               static_cast<int>(to % kPageTokens));
            }
            path_q.insert(path_q.end(), q.begin() + static_cast<std::ptrdiff_t>(path[i]) * width,
                          q.begin() + static_cast<std::ptrdiff_t>(path[i] + 1) * width);
          }
          const int length = static_cast<int>(path.size()) + 1;
          const auto want = run_attention(chain, path_q, shape.n_heads, first, length, mode, 1, 1,
                                          f.transforms, one);
          ASSERT_EQ(0, std::memcmp(&got[static_cast<std::size_t>(row) * width],
                                   &want[static_cast<std::size_t>(length - 1) * width],
                                   static_cast<std::size_t>(width) * 4))
              << kernels::kv_format(mode).name << " at " << first << ", row " << row << " of " << n;
        }
        // Negative control: read as a chain, rows beside others' paths are something else.
        const auto chained =
            run_attention(tree, q, shape.n_heads, first, n, mode, 1, 1, f.transforms, one);
        EXPECT_EQ(siblings > 0, 0 != std::memcmp(got.data(), chained.data(), got.size() * 4));
      }
    }
  }
}

TEST(AttentionOnTiles, HasTheBitsOfVnni) {
  const auto isas = kernels::supported_isas();
  if (std::find(isas.begin(), isas.end(), Isa::kAvx512Amx) == isas.end())
    GTEST_SKIP() << "no AMX here";
  ThreadPool pool(2);
  for (const Shape shape : {Shape{80, 4, 4}, Shape{96, 7, 1}, Shape{16, 8, 2}, Shape{112, 12, 2}}) {
    Fixture f(shape, KvMode::kInt2, 1300, 16);
    for (const int n : {1, 4, 7, 64}) {
      const auto q = f.queries(n);
      const auto run = [&](Isa isa) {
        ScopedIsa scoped(isa);
        return run_attention(f.sequence[0], q, shape.n_heads, 1200, n, KvMode::kInt2, 1, 1,
                             f.transforms, pool);
      };
      const auto vnni = run(Isa::kAvx512Vnni), amx = run(Isa::kAvx512Amx);
      ASSERT_EQ(0, std::memcmp(vnni.data(), amx.data(), vnni.size() * 4)) << shape.d << " " << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, AttentionTest,
                         ::testing::ValuesIn(kernels::supported_isas().begin(),
                                             kernels::supported_isas().end()),
                         [](const auto& info) {
                           std::string name(kernels::isa_name(info.param));
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace foretoken::kv_test
