#include "foretoken/kernels/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace foretoken::kernels {
namespace {

TEST(ThreadPool, RangesCoverEverythingOnceAtTheGrain) {
  for (int n_threads = 1; n_threads <= 5; ++n_threads) {
    ThreadPool pool(n_threads);
    EXPECT_EQ(pool.size(), n_threads);
    for (const std::int64_t n : {0, 1, 2, 15, 16, 17, 100, 1000}) {
      for (const std::int64_t grain : {1, 16, 64}) {
        std::vector<std::atomic<int>> hits(static_cast<std::size_t>(n));
        std::atomic<int> calls{0};
        pool.ranges(n, grain, [&](std::int64_t begin, std::int64_t end, int worker) {
          ++calls;
          EXPECT_LT(worker, n_threads);
          EXPECT_LT(begin, end);
          EXPECT_EQ(begin % grain, 0);
          EXPECT_TRUE(end % grain == 0 || end == n);
          for (std::int64_t i = begin; i < end; ++i) ++hits[static_cast<std::size_t>(i)];
        });
        EXPECT_LE(calls, n_threads);
        for (const auto& h : hits) EXPECT_EQ(h, 1);
      }
    }
  }
}

TEST(ThreadPool, TasksRunOnceEach) {
  ThreadPool pool(3);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::atomic<int>> hits(static_cast<std::size_t>(round % 40));
    pool.tasks(static_cast<int>(hits.size()),
               [&](int task, int) { ++hits[static_cast<std::size_t>(task)]; });
    for (const auto& h : hits) ASSERT_EQ(h, 1);
  }
}

// Parked workers wake up, and results written by workers are visible to the caller.
TEST(ThreadPool, WakesAfterParking) {
  ThreadPool pool(4);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::vector<int> value(4, 0);
    pool.ranges(4, 1, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) value[static_cast<std::size_t>(i)] = round + 1;
    });
    for (int v : value) ASSERT_EQ(v, round + 1);
  }
}

// A worker that never gets to run holds up nothing: more workers than cores, each job far shorter
// than a scheduler's slice, results complete every time.
TEST(ThreadPool, LateWorkersAreNotWaitedFor) {
  ThreadPool pool(16);
  std::int64_t sum = 0;
  for (int round = 0; round < 3000; ++round) {
    std::int64_t part[16] = {};
    pool.ranges(160, 10, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) part[begin / 10] += i;
    });
    std::int64_t total = 0;
    for (std::int64_t p : part) total += p;
    ASSERT_EQ(total, 159 * 160 / 2) << "round " << round;
    sum += total;
  }
  EXPECT_EQ(sum, 3000 * (159 * 160 / 2));
}

// Posted tasks run once each, beside and between jobs, and are all done when complete() returns,
// however few workers had time for them.
TEST(ThreadPool, PostedTasksAreDoneOnceWhenCompleted) {
  for (int n_threads = 1; n_threads <= 5; ++n_threads) {
    ThreadPool pool(n_threads);
    pool.complete();
    for (int round = 0; round < 2000; ++round) {
      std::vector<int> hits(static_cast<std::size_t>(round % 7));
      const auto task = [&](int i) { ++hits[static_cast<std::size_t>(i)]; };
      pool.post(static_cast<int>(hits.size()), task);
      for (int job = round % 3; job > 0; --job) {
        std::atomic<int> done{0};
        pool.tasks(8, [&](int, int) { ++done; });
        ASSERT_EQ(done, 8);
      }
      if (round % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      pool.complete();
      for (const int h : hits) ASSERT_EQ(h, 1) << n_threads << " threads, round " << round;
    }
  }
}

// A hint to fetch ahead may be of memory that has gone by the time a worker waits.
TEST(ThreadPool, FetchingAheadReadsNothing) {
  ThreadPool pool(3);
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> done{0};
    pool.tasks(9, [&](int task, int worker) {
      pool.fetch_ahead(worker, reinterpret_cast<const std::byte*>(std::uintptr_t(task) << 40),
                       std::size_t{1} << 20);
      ++done;
    });
    ASSERT_EQ(done, 9);
    if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace
}  // namespace foretoken::kernels
