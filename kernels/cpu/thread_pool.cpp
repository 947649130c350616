#include "foretoken/kernels/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace foretoken::kernels {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A worker that parks pays one futex wake, 30 to 60 us in a virtual machine, before its next job.
// Spinning for as long as that wake costs is at most twice as expensive as the best choice made
// with hindsight, and covers the serial gaps between two layers, which last a few microseconds.
constexpr auto kSpin = std::chrono::microseconds(50);

// Waits until value != old: spins for kSpin, then parks in the kernel.
template <class T>
void wait_change(const std::atomic<T>& value, T old) {
  for (int i = 0; i < 64; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

struct ThreadPool::Impl {
  explicit Impl(int n) : n_threads(n < 1 ? 1 : n) {
    threads.reserve(static_cast<std::size_t>(n_threads - 1));
    for (int worker = 1; worker < n_threads; ++worker)
      threads.emplace_back([this, worker] { work(worker); });
  }

  ~Impl() {
    stop = true;
    epoch.fetch_add(1, std::memory_order_release);
    epoch.notify_all();
    for (std::thread& t : threads) t.join();
  }

  void work(int worker) {
    std::uint32_t seen = 0;
    for (;;) {
      wait_change(epoch, seen);
      seen = epoch.load(std::memory_order_acquire);
      if (stop) return;
      (*job)(worker);
      if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) pending.notify_one();
    }
  }

  // Runs fn(worker) on every worker, the caller being worker 0, and returns when all are done.
  void run(FunctionRef<void(int)> fn) {
    job = &fn;
    pending.store(n_threads - 1, std::memory_order_relaxed);
    epoch.fetch_add(1, std::memory_order_release);
    epoch.notify_all();
    fn(0);
    for (int left = pending.load(std::memory_order_acquire); left != 0;
         left = pending.load(std::memory_order_acquire)) {
      wait_change(pending, left);
    }
  }

  const int n_threads;
  // Written before `epoch` is raised (release), read by workers after they saw it (acquire).
  FunctionRef<void(int)>* job = nullptr;
  bool stop = false;
  alignas(64) std::atomic<std::uint32_t> epoch{0};
  alignas(64) std::atomic<int> pending{0};
  alignas(64) std::atomic<int> next{0};
  std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int n_threads) : impl_(std::make_unique<Impl>(n_threads)) {}
ThreadPool::~ThreadPool() = default;

int ThreadPool::size() const { return impl_->n_threads; }

void ThreadPool::ranges(std::int64_t n, std::int64_t grain,
                        FunctionRef<void(std::int64_t, std::int64_t, int)> fn) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  const std::int64_t n_grains = (n + grain - 1) / grain;
  if (impl_->n_threads == 1 || n_grains == 1) {
    fn(0, n, 0);
    return;
  }
  const std::int64_t n_threads = impl_->n_threads;
  auto body = [&](int worker) {
    const std::int64_t begin = n_grains * worker / n_threads * grain;
    std::int64_t end = n_grains * (worker + 1) / n_threads * grain;
    if (end > n) end = n;
    if (begin < end) fn(begin, end, worker);
  };
  impl_->run(body);
}

void ThreadPool::tasks(int n, FunctionRef<void(int, int)> fn) {
  if (n <= 0) return;
  if (impl_->n_threads == 1 || n == 1) {
    for (int task = 0; task < n; ++task) fn(task, 0);
    return;
  }
  impl_->next.store(0, std::memory_order_relaxed);
  auto body = [&](int worker) {
    for (;;) {
      const int task = impl_->next.fetch_add(1, std::memory_order_relaxed);
      if (task >= n) return;
      fn(task, worker);
    }
  };
  impl_->run(body);
}

}  // namespace foretoken::kernels
