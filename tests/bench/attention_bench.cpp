// Decode attention of one layer over the cache's pages: time a call, bytes of K and V read, and
// rate, by mode, depth and rows. One sequence; every page its own memory, more of it in all than
// the caches hold.
//   attention_bench [threads [mode...]]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/unit/kv/synthetic.h"

namespace foretoken::kv_test {
namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void measure(int d, int n_heads, int n_kv_heads, int depth, int rows, kernels::KvMode mode,
             kernels::ThreadPool& pool) {
  std::mt19937_64 random(1);
  std::vector<OwnedTransform> owned;
  std::vector<kernels::KvTransform> transforms;
  for (int h = 0; h < n_kv_heads; ++h) owned.emplace_back(mode, d, 2 * d / 16, d / 16, random);
  for (const auto& o : owned) transforms.push_back(o.view);
  // Layers enough that a round trip through them (256 MiB of 16-bit pages) misses the last-level
  // cache's share.
  const int pages = depth / kPageTokens + 1;
  const std::size_t hot_bytes = kernels::hot_page_bytes(d) * n_kv_heads,
                    sealed_bytes = kernels::sealed_page_bytes(mode, d) * n_kv_heads;
  const int layers = static_cast<int>(
      std::clamp<std::size_t>((std::size_t{256} << 20) / (hot_bytes * pages), 1, 64));
  SyntheticSequence one(kPageTokens, n_kv_heads, d, mode, transforms, random);
  std::vector<std::byte> hot(hot_bytes * pages * layers), sealed(sealed_bytes * pages * layers);
  std::vector<const std::byte*> hot_at(pages * layers), sealed_at(pages * layers);
  for (int p = 0; p < pages * layers; ++p) {
    std::copy(one.hot[0].begin(), one.hot[0].end(),
              hot.begin() + static_cast<std::ptrdiff_t>(hot_bytes * p));
    std::copy(one.sealed[0].begin(), one.sealed[0].end(),
              sealed.begin() + static_cast<std::ptrdiff_t>(sealed_bytes * p));
    hot_at[p] = hot.data() + hot_bytes * p, sealed_at[p] = sealed.data() + sealed_bytes * p;
  }
  const int width = n_heads * d;
  const auto q = normal(static_cast<std::size_t>(rows) * width, random);
  std::vector<float> out(q.size());
  std::vector<std::byte> scratch(
      kernels::attention_scratch_bytes(rows, n_heads, d, pool.size(), depth) + 64);
  const auto call_layer = [&](int layer) {
    const kernels::AttentionRows r{depth - rows,
                                   rows,
                                   q.data(),
                                   out.data(),
                                   hot_at.data() + layer * pages,
                                   sealed_at.data() + layer * pages};
    const kernels::AttentionCall call{.sequences = &r,
                                      .n_sequences = 1,
                                      .n_heads = n_heads,
                                      .n_kv_heads = n_kv_heads,
                                      .head_dim = d,
                                      .q_stride = width,
                                      .out_stride = width,
                                      .scale = 0.1f,
                                      .hot_offset = 0,
                                      .hot_stride = kernels::hot_page_bytes(d),
                                      .sealed_offset = 0,
                                      .sealed_stride = kernels::sealed_page_bytes(mode, d),
                                      .mode = mode,
                                      .sink_pages = 1,
                                      .window_pages = 4,
                                      .transforms = transforms.data()};
    kernels::attention(call, scratch.data(), scratch.size(), pool);
  };
  std::vector<double> times;
  for (int l = 0; l < layers; ++l) call_layer(l);
  const double begin = seconds();
  for (int n = 0; seconds() - begin < 0.7 || times.size() < 5; ++n) {
    const double t = seconds();
    call_layer(n % layers);
    times.push_back(seconds() - t);
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  const int sealed_pages =
      mode != kernels::KvMode::kBf16 ? std::max(0, (depth - 1) / kPageTokens - 5) : 0;
  const double bytes =
      double(sealed_pages) * sealed_bytes + double((depth + 63) / 64 - sealed_pages) * hot_bytes;
  std::printf(
      "d %3d  %2d/%d heads  depth %5d  rows %d  %-10s  %8.1f us  (10%% %.1f, 90%% %.1f)  %6.2f MB  "
      "%5.1f GB/s\n",
      d, n_heads, n_kv_heads, depth, rows, kernels::kv_format(mode).name, median * 1e6,
      times[times.size() / 10] * 1e6, times[times.size() * 9 / 10] * 1e6, bytes / 1e6,
      bytes / median / 1e9);
}

}  // namespace
}  // namespace foretoken::kv_test

int main(int argc, char** argv) {
  foretoken::kernels::ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 2);
  std::printf("%s, %d threads, one layer\n",
              std::string(foretoken::kernels::isa_name(foretoken::kernels::active_isa())).c_str(),
              pool.size());
  struct {
    int d, heads, kv_heads;
  } const shapes[] = {{64, 9, 3}, {64, 14, 2}, {128, 12, 2}};
  for (const auto& s : shapes) {
    for (const int depth : {512, 4096, 16384}) {
      for (const int rows : {1, 4, 8}) {
        for (const foretoken::kernels::KvFormat& f : foretoken::kernels::kKvFormats) {
          if (argc > 2 && std::find(argv + 2, argv + argc, std::string(f.name)) == argv + argc)
            continue;
          foretoken::kv_test::measure(s.d, s.heads, s.kv_heads, depth, rows, f.mode, pool);
        }
      }
    }
  }
}
