#include "foretoken/kernels/peak.h"

#include <atomic>
#include <cstring>

#include "foretoken/kernels/isa.h"
#include "peak_functions.h"

namespace foretoken::kernels {

std::uint64_t sum_words_scalar(const std::byte* data, std::size_t bytes) {
  std::uint64_t sums[4] = {};
  for (std::size_t i = 0; i + 32 <= bytes; i += 32) {
    std::uint64_t words[4];
    std::memcpy(words, data + i, 32);
    for (int j = 0; j < 4; ++j) sums[j] += words[j];
  }
  return sums[0] + sums[1] + sums[2] + sums[3];
}

std::int64_t int8_spin_scalar(std::int64_t iterations, std::int32_t* sink) {
  volatile std::uint8_t a0 = 3;
  volatile std::int8_t b0 = 5;
  std::int32_t sums[kInt8Chains] = {};
  std::int32_t a = a0, b = b0;
  for (std::int64_t i = 0; i < iterations; ++i)
    for (std::int32_t& sum : sums) {
      asm volatile("" : "+r"(a), "+r"(b));  // each product is to be made, not remembered
      sum += a * b;
    }
  for (std::int32_t sum : sums) *sink += sum;
  return iterations * kInt8Chains;
}

std::uint64_t stream_sum(const std::byte* data, std::size_t bytes, ThreadPool& pool) {
  const Isa isa = active_isa();
  const SumWords sum = isa == Isa::kScalar ? sum_words_scalar
                       : isa == Isa::kAvx2 ? sum_words_avx2
                                           : sum_words_avx512;
  constexpr std::int64_t kUnit = 512;
  std::atomic<std::uint64_t> total{0};
  pool.ranges(static_cast<std::int64_t>(bytes) / kUnit, 8,
              [&](std::int64_t begin, std::int64_t end, int) {
                total += sum(data + begin * kUnit, static_cast<std::size_t>((end - begin) * kUnit));
              });
  return total;
}

std::int64_t int8_multiply_adds(std::int64_t iterations, ThreadPool& pool, std::int32_t* sink) {
  Int8Spin spin = int8_spin_scalar;
  switch (active_isa()) {
    case Isa::kScalar:
      break;
    case Isa::kAvx2:
      spin = int8_spin_avx2;
      break;
    case Isa::kAvx512:
      spin = int8_spin_avx512;
      break;
    case Isa::kAvx512Vnni:
    case Isa::kAvx512VnniBf16:
      spin = int8_spin_avx512_vnni;
      break;
    case Isa::kAvx512Amx:
      spin = int8_spin_avx512_amx;
      break;
  }
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
