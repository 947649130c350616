// The kernel thread pool: `size()` workers, the caller being worker 0. Workers spin briefly for the
// next job, then park. One job at a time; not re-entrant; called from the engine thread alone.
// Nothing computed may depend on size() or on which worker ran what (law 1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace foretoken::kernels {

// A non-owning reference to a callable: valid for the duration of the call it is passed to.
template <class Signature>
class FunctionRef;
template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
      FunctionRef(F&& f)  // NOLINT: implicit
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* o, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(o))(static_cast<Args>(args)...);
        }) {}
  R operator()(Args... args) const { return call_(object_, static_cast<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);  // >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // fn(begin, end, worker) over a split of [0, n) into size() contiguous ranges, borders at
  // multiples of `grain`: each core streams its own part of the weights. The range of a worker that
  // comes late (its core was taken away, or it was parked) is run by another: `worker` says who
  // runs it, for scratch memory, and not which range it is. The same worker may be given several
  // ranges.
  void ranges(std::int64_t n, std::int64_t grain,
              FunctionRef<void(std::int64_t, std::int64_t, int)> fn);

  // fn(task, worker) for every task in [0, n), handed out one by one as workers become free.
  void tasks(int n, FunctionRef<void(int, int)> fn);

  // What a worker should fetch into its cache while it waits for its next job, [from, from +
  // bytes): where the weights lie that it will read there, so that memory is not idle between two
  // jobs. A hint: nothing is read by the program, and the next hint replaces it. Called inside a
  // job, by the worker itself.
  void fetch_ahead(int worker, const std::byte* from, std::size_t bytes);

  // fn(task) for every task in [0, n), by workers that have nothing else to do, while the caller
  // goes on; a job that begins meanwhile has them when they are through. `fn` is kept as a
  // reference: what it refers to, and what the tasks read and write, is left alone until complete()
  // returns, which does what nobody has taken up. One post at a time.
  void post(int n, FunctionRef<void(int)> fn);
  void complete();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken::kernels
