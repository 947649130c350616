#include "foretoken/kernels/thread_pool.h"

#include <atomic>
#include <cassert>
#include <chrono>
#include <optional>
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

// What a waiting thread still has to fetch: its own, and nobody else's.
struct alignas(64) FetchAhead {
  const std::byte *at = nullptr, *end = nullptr;

  // About as much as a core can have under way at once; false when there is nothing left.
  bool step() {
    if (at >= end) return false;
    for (int i = 0; i < 8 && at < end; ++i, at += 64) __builtin_prefetch(at, 0, 2);
    return true;
  }
};

// Waits until value != old: spins for kSpin, then parks in the kernel.
template <class T>
void wait_change(const std::atomic<T>& value, T old, FetchAhead& ahead) {
  const auto spin = [&](int turns) {
    for (int i = 0; i < turns; ++i) {
      if (value.load(std::memory_order_acquire) != old) return true;
      if (!ahead.step()) relax();
    }
    return false;
  };
  if (spin(64)) return;
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    if (spin(32)) return;
  } while (std::chrono::steady_clock::now() < deadline);
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

struct ThreadPool::Impl {
  explicit Impl(int n)
      : n_threads(n < 1 ? 1 : n),
        claimed(std::make_unique<std::atomic<bool>[]>(static_cast<std::size_t>(n_threads))),
        ahead(std::make_unique<FetchAhead[]>(static_cast<std::size_t>(n_threads))) {
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

  // A worker enters whatever job is open when it comes; one that comes too late finds the gate
  // closed and goes back to waiting, and nobody waits for it. So a job must be complete once worker
  // 0's own call of fn returns and those who entered have left: every job hands out its work by
  // claims.
  void work(int worker) {
    std::uint32_t seen = 0;
    for (;;) {
      wait_change(epoch, seen, ahead[static_cast<std::size_t>(worker)]);
      seen = epoch.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      run_posted();
      std::uint32_t g = gate.load(std::memory_order_relaxed);
      while ((g & kOpen) != 0 && !gate.compare_exchange_weak(g, g + 1, std::memory_order_acquire,
                                                             std::memory_order_relaxed)) {
      }
      if ((g & kOpen) == 0) continue;
      (*job)(worker);
      if (gate.fetch_sub(1, std::memory_order_acq_rel) == 1)
        gate.notify_one();  // closed, and the last
    }
  }

  // Runs fn(0) here and fn(worker) on every worker that comes in time.
  void run(FunctionRef<void(int)> fn) {
    job = &fn;
    gate.store(kOpen, std::memory_order_release);
    epoch.fetch_add(1, std::memory_order_release);
    epoch.notify_all();
    fn(0);
    gate.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (std::uint32_t inside = gate.load(std::memory_order_acquire); inside != 0;
         inside = gate.load(std::memory_order_acquire)) {
      wait_change(gate, inside, ahead[0]);
    }
  }

  // Counts down, so that a claim is of whatever is posted when it succeeds: there is nothing that a
  // worker could have read of an earlier post.
  void run_posted() {
    int left = unclaimed.load(std::memory_order_relaxed);
    while (left > 0) {
      if (!unclaimed.compare_exchange_weak(left, left - 1, std::memory_order_acquire,
                                           std::memory_order_relaxed))
        continue;
      (*posted)(left - 1);
      if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished.notify_one();
      left = unclaimed.load(std::memory_order_relaxed);
    }
  }

  static constexpr std::uint32_t kOpen = 1u << 31;

  const int n_threads;
  // Written while the gate is closed and nobody is inside; read after entering (acquire).
  FunctionRef<void(int)>* job = nullptr;
  std::atomic<bool> stop{false};
  alignas(64) std::atomic<std::uint32_t> epoch{0};  // raised with every job: what workers wait on
  alignas(64) std::atomic<std::uint32_t> gate{0};   // kOpen, plus how many workers are inside
  alignas(64) std::atomic<int> next{0};
  // Of the posted tasks. Written while none is unfinished; read after a claim (acquire).
  std::optional<FunctionRef<void(int)>> posted;
  alignas(64) std::atomic<int> unclaimed{0};
  alignas(64) std::atomic<int> unfinished{0};
  std::unique_ptr<std::atomic<bool>[]> claimed;  // [n_threads]: the ranges already taken
  std::unique_ptr<FetchAhead[]> ahead;           // [n_threads]: each its thread's own
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
  const int n_threads = impl_->n_threads;
  std::atomic<bool>* claimed = impl_->claimed.get();
  for (int part = 0; part < n_threads; ++part)
    claimed[part].store(false, std::memory_order_relaxed);
  auto body = [&](int worker) {
    for (int i = 0; i < n_threads; ++i) {
      const int part = (worker + i) % n_threads;  // its own first
      if (claimed[part].exchange(true, std::memory_order_relaxed)) continue;
      const std::int64_t begin = n_grains * part / n_threads * grain;
      std::int64_t end = n_grains * (part + 1) / n_threads * grain;
      if (end > n) end = n;
      if (begin < end) fn(begin, end, worker);
    }
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

void ThreadPool::fetch_ahead(int worker, const std::byte* from, std::size_t bytes) {
  impl_->ahead[static_cast<std::size_t>(worker)] = {from, from + bytes};
}

void ThreadPool::post(int n, FunctionRef<void(int)> fn) {
  if (n <= 0) return;
  Impl& p = *impl_;
  assert(p.unfinished.load() == 0);
  p.posted = fn;
  p.unfinished.store(n, std::memory_order_relaxed);
  p.unclaimed.store(n, std::memory_order_release);
  p.epoch.fetch_add(1, std::memory_order_release);
  p.epoch.notify_all();
}

void ThreadPool::complete() {
  impl_->run_posted();
  for (int left = impl_->unfinished.load(std::memory_order_acquire); left != 0;
       left = impl_->unfinished.load(std::memory_order_acquire)) {
    wait_change(impl_->unfinished, left, impl_->ahead[0]);
  }
}

}  // namespace foretoken::kernels
