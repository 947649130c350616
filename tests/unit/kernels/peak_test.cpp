#include "foretoken/kernels/peak.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace foretoken::kernels {
namespace {

TEST(Peak, StreamSumReadsEveryByte) {
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    for (std::size_t n : {512u, 4096u, 512u * 77u}) {
      std::vector<std::uint64_t> words(n / 8);
      std::uint64_t want = 0, x = 1;
      for (auto& w : words) want += w = (x = x * 6364136223846793005u + 1442695040888963407u);
      EXPECT_EQ(stream_sum(reinterpret_cast<const std::byte*>(words.data()), n, pool), want)
          << threads << " " << n;
    }
  }
}

TEST(Peak, MultiplyAddsAreDone) {
  ThreadPool pool(2);
  std::int32_t sink = 0;
  const std::int64_t done = int8_multiply_adds(100, pool, &sink);
  EXPECT_GE(done, 100 * 2);
  EXPECT_GE(sink, 100 * 2 * 15);  // at least one lane of 3 * 5 an iteration and worker
}

}  // namespace
}  // namespace foretoken::kernels
