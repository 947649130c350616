#include "foretoken/kernels/linear.h"

#include <atomic>

#include "foretoken/kernels/sampling.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/weights.h"

namespace foretoken::kernels {
namespace {

// What a waiting worker fetches of its next weights: a hand-over and the steps between two jobs
// last some ten microseconds, as long as a core takes to read this much; and an eighth of the
// smallest second-level cache.
constexpr std::size_t kFetchAhead = 128 << 10;

}  // namespace

void linear(const PackedMatrix& w, const Activations& x, const float* bias, float* y,
            std::int64_t y_stride, ThreadPool& pool,
            std::initializer_list<const PackedMatrix*> next) {
  const LinearJob job{&w, bias, y, y_stride};
  linear_many(&job, 1, x, pool, next);
}

namespace {

// The groups of all jobs as one sequence, cut into one contiguous part of about equal bytes a
// thread, for time goes by the bytes read. A worker takes its own part chunk by chunk, in order,
// and then what is left of the others': where the scheduler takes a core away (a trainer beside the
// server), the rest of its part does not wait for it.
class Parts {
 public:
  Parts(const LinearJob* jobs, int n_jobs, std::int64_t n_rows, int n_parts)
      : jobs_(jobs), n_jobs_(n_jobs), n_parts_(n_parts < kMaxParts ? n_parts : kMaxParts) {
    std::int64_t total = 0, n_all = 0;
    for (int j = 0; j < n_jobs; ++j) {
      total += count(j) * size(j);
      n_all += count(j);
      if (jobs[j].summary) step_ = kLogitBlock / kPackRows;
    }
    for (int p = 0; p < n_parts_; ++p) {
      parts_[p].next.store(p == 0 ? 0 : group_at(total / n_parts_ * p), std::memory_order_relaxed);
      parts_[p].end = p + 1 == n_parts_ ? n_all : group_at(total / n_parts_ * (p + 1));
    }
    // At least 16 KiB, about 1.5 us of reading, beside which taking a chunk costs nothing. With
    // many rows each chunk passes over all their activations, more than a core's cache holds: then
    // a quarter of a part.
    constexpr std::int64_t kManyRows = 64;
    const std::int64_t mean = n_all > 0 ? total / n_all : 1;
    least_ = (16384 + mean - 1) / mean;
    if (n_rows >= kManyRows && least_ < n_all / n_parts_ / 4) least_ = n_all / n_parts_ / 4;
    least_ = (least_ + step_ - 1) / step_ * step_;
  }

  void work(int worker, const Activations::Impl& x, const LinearTable& groups) {
    for (int i = 0; i < n_parts_; ++i) {
      Part& part = parts_[(worker + i) % n_parts_];
      for (;;) {
        std::int64_t first = part.next.load(std::memory_order_relaxed), last = 0;
        do {
          if (first >= part.end) break;
          // A quarter of what is left: the last chunks are small, so that the workers end together.
          std::int64_t n = (part.end - first) / 4 / step_ * step_;
          if (n < least_) n = least_;
          last = first + n < part.end ? first + n : part.end;
        } while (!part.next.compare_exchange_weak(first, last, std::memory_order_relaxed));
        if (first >= part.end) break;
        run(first, last, x, groups);
      }
    }
  }

 private:
  static constexpr int kMaxParts = 64;
  struct Part {
    alignas(64) std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  std::int64_t count(int j) const { return n_groups(jobs_[j].w->n_out); }
  std::int64_t size(int j) const {
    return static_cast<std::int64_t>(group_bytes(jobs_[j].w->type, jobs_[j].w->n_in));
  }
  // The first group that begins at or after a byte of the sequence, at the border of a block.
  std::int64_t group_at(std::int64_t byte) const {
    std::int64_t offset = 0, first = 0;
    for (int j = 0; j < n_jobs_; ++j) {
      if (byte <= offset + count(j) * size(j))
        return (first + (byte - offset + size(j) - 1) / size(j)) / step_ * step_;
      offset += count(j) * size(j);
      first += count(j);
    }
    return first;
  }
  void run(std::int64_t first, std::int64_t last, const Activations::Impl& x,
           const LinearTable& groups) {
    std::int64_t offset = 0;
    for (int j = 0; j < n_jobs_ && offset < last; ++j) {
      const std::int64_t begin = first > offset ? first - offset : 0;
      const std::int64_t end = last - offset < count(j) ? last - offset : count(j);
      if (begin < end) {
        const LinearJob& job = jobs_[j];
        groups[static_cast<std::size_t>(job.w->type)](
            LinearTask{*job.w, &x, job.bias, job.y, job.y_stride}, begin, end);
        if (job.summary) summarise(job, x.n_rows, begin, end);
      }
      offset += count(j);
    }
  }

  void summarise(const LinearJob& job, std::int64_t n_rows, std::int64_t begin, std::int64_t end) {
    const std::int64_t first = begin * kPackRows, block = first / kLogitBlock;
    const std::int64_t last = end * kPackRows < job.w->n_out ? end * kPackRows : job.w->n_out;
    const LogitSummary& to = *job.summary;
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const std::int64_t at = r * to.stride + block;
      const float scale = to.scales ? to.scales[r] : 0;
      logit_block_summary(job.y + r * job.y_stride + first, last - first, to.maxima + at,
                          to.sums ? to.sums + at : nullptr, scale,
                          scale > 0 && to.scaled_sums ? to.scaled_sums + at : nullptr);
    }
  }

  const LinearJob* jobs_;
  int n_jobs_, n_parts_;
  // Parts and chunks begin at multiples of this many groups: a block of logits is one chunk's. (A
  // job that wants summaries comes alone.)
  std::int64_t step_ = 1;
  std::int64_t least_ = 1;  // groups a chunk
  Part parts_[kMaxParts];
};

// Where a worker's part of these matrices begins, as Parts cuts them, and how much of one lies
// there in one piece, at most kFetchAhead.
void fetch_part(std::initializer_list<const PackedMatrix*> matrices, int worker, ThreadPool& pool) {
  std::size_t total = 0;
  for (const PackedMatrix* w : matrices) total += w->bytes;
  std::size_t first =
      total / static_cast<std::size_t>(pool.size()) * static_cast<std::size_t>(worker);
  for (const PackedMatrix* w : matrices) {
    if (first < w->bytes) {
      const std::size_t group = group_bytes(w->type, w->n_in);
      const std::size_t at = (first + group - 1) / group * group;
      const std::size_t left = w->bytes - at;
      pool.fetch_ahead(worker, w->data + at, left < kFetchAhead ? left : kFetchAhead);
      return;
    }
    first -= w->bytes;
  }
}

}  // namespace

// Parallel over outputs alone, never over k.
void linear_many(const LinearJob* jobs, int n_jobs, const Activations& x, ThreadPool& pool,
                 std::initializer_list<const PackedMatrix*> next) {
  const LinearTable& groups = cpu_ops().linear;
  Parts parts(jobs, n_jobs, x.impl().n_rows, pool.size());
  pool.ranges(pool.size(), 1, [&](std::int64_t first, std::int64_t last, int worker) {
    for (std::int64_t part = first; part < last; ++part)
      parts.work(static_cast<int>(part), x.impl(), groups);
    fetch_part(next, worker, pool);
  });
}

}  // namespace foretoken::kernels
