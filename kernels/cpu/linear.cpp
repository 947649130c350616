#include "foretoken/kernels/linear.h"

#include "linear_functions.h"
#include "packed_layout.h"

namespace foretoken::kernels {
namespace {

LinearGroups active_groups() {
  switch (active_isa()) {
    case Isa::kScalar:
      return linear_groups_scalar;
    case Isa::kAvx2:
      return linear_groups_avx2;
    case Isa::kAvx512:
      return linear_groups_avx512;
    // Float weights meet float activations, so that BF16 instructions have no part here.
    case Isa::kAvx512Vnni:
    case Isa::kAvx512VnniBf16:
      return linear_groups_avx512_vnni;
  }
  return linear_groups_scalar;
}

}  // namespace

void linear(const PackedMatrix& w, const Activations& x, const float* bias, float* y,
            std::int64_t y_stride, ThreadPool& pool) {
  const LinearJob job{&w, bias, y, y_stride};
  linear_many(&job, 1, x, pool);
}

// Parallel over outputs alone. The jobs' groups form one sequence, cut into as many contiguous
// parts of equal bytes as there are threads: time goes by the bytes read.
void linear_many(const LinearJob* jobs, int n_jobs, const Activations& x, ThreadPool& pool) {
  const LinearGroups groups = active_groups();
  std::int64_t total = 0;
  for (int j = 0; j < n_jobs; ++j)
    total += n_groups(jobs[j].w->n_out) *
             static_cast<std::int64_t>(group_bytes(jobs[j].w->type, jobs[j].w->n_in));
  const std::int64_t n_parts = pool.size();
  pool.ranges(n_parts, 1, [&](std::int64_t first_part, std::int64_t last_part, int) {
    const std::int64_t begin = total / n_parts * first_part;
    const std::int64_t end = last_part == n_parts ? total : total / n_parts * last_part;
    std::int64_t offset = 0;
    for (int j = 0; j < n_jobs; ++j) {
      const PackedMatrix& w = *jobs[j].w;
      const auto size = static_cast<std::int64_t>(group_bytes(w.type, w.n_in));
      const std::int64_t count = n_groups(w.n_out);
      // A group belongs to the part its first byte lies in.
      auto first_at_or_after = [&](std::int64_t byte) {
        const std::int64_t g = (byte - offset + size - 1) / size;
        return byte <= offset ? 0 : g < count ? g : count;
      };
      const std::int64_t first = first_at_or_after(begin), last = first_at_or_after(end);
      if (first < last) {
        const LinearTask task{w, &x.impl(), jobs[j].bias, jobs[j].y, jobs[j].y_stride};
        groups(task, first, last);
      }
      offset += count * size;
    }
  });
}

}  // namespace foretoken::kernels
