#include "foretoken/kernels/peak.h"

#include <atomic>

#include "kernels/cpu/cpu_ops.h"

namespace foretoken::kernels {

std::uint64_t stream_sum(const std::byte* data, std::size_t bytes, ThreadPool& pool) {
  const auto sum = cpu_ops().peak.sum_words;
  constexpr std::int64_t kUnit = 512;
  std::atomic<std::uint64_t> total{0};
  pool.ranges(static_cast<std::int64_t>(bytes) / kUnit, 8,
              [&](std::int64_t begin, std::int64_t end, int) {
                total += sum(data + begin * kUnit, static_cast<std::size_t>((end - begin) * kUnit));
              });
  return total;
}

std::int64_t int8_multiply_adds(std::int64_t iterations, ThreadPool& pool, std::int32_t* sink) {
  const auto spin = cpu_ops().peak.int8_spin;
  std::atomic<std::int64_t> done{0};
  std::atomic<std::int32_t> computed{0};
  pool.ranges(pool.size(), 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (; begin < end; ++begin) {
      std::int32_t value = 0;
      done += spin(iterations, &value);
      computed += value;
    }
  });
  *sink = computed;
  return done;
}

}  // namespace foretoken::kernels
