// Linear layers against the machine's own limits: bytes of packed weights a second beside the read
// bandwidth, multiply-adds a second beside the int8 peak. Every shape is held in as many copies as
// outgrow the last-level cache, and read in turn, as a model's layers are. Times are the least of
// the repeats, because other work on the machine only ever adds to them.
//
//   linear_bench [--threads 2] [--megabytes 512] [--type Q4_K] [--isa avx2]
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "foretoken/kernels/isa.h"
#include "foretoken/kernels/linear.h"
#include "foretoken/kernels/peak.h"
#include "foretoken/kernels/sampling.h"
#include "foretoken/kernels/thread_pool.h"
#include "tests/unit/kernels/fixtures.h"

namespace foretoken::kernels {
namespace {

// With one thread, its own processor time: what the scheduler gave to others is not counted.
bool one_thread = false;

double now() {
  timespec t;
  clock_gettime(one_thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}
double seconds(const std::function<void()>& fn) {
  const double start = now();
  fn();
  return now() - start;
}
double least(int repeats, const std::function<void()>& fn) {
  double best = 1e9;
  for (int i = 0; i < repeats; ++i) best = std::min(best, seconds(fn));
  return best;
}

// On huge pages, as a model's weights are.
struct Buffer {
  static constexpr std::align_val_t kAlign{std::size_t{2} << 20};
  explicit Buffer(std::size_t n)
      : bytes(n), data(static_cast<std::byte*>(::operator new(n, kAlign))) {
    madvise(data, n, MADV_HUGEPAGE);
  }
  ~Buffer() { ::operator delete(data, kAlign); }
  std::size_t bytes;
  std::byte* data;
};

// The two bounds: reading, in pieces of 8 MiB, and int8 multiply-adds from registers.
double read_bandwidth(const Buffer& buffer, ThreadPool& pool) {
  constexpr std::size_t kPiece = 8 << 20;
  std::vector<double> times;
  for (int repeat = 0; repeat < 3; ++repeat)
    for (std::size_t at = 0; at + kPiece <= buffer.bytes; at += kPiece)
      times.push_back(seconds([&] { stream_sum(buffer.data + at, kPiece, pool); }));
  std::sort(times.begin(), times.end());
  return kPiece / times[times.size() / 5] / 1e9;
}
double int8_peak(ThreadPool& pool) {
  std::int32_t sink = 0;
  std::int64_t done = 0;
  const double time = least(20, [&] { done = int8_multiply_adds(100000, pool, &sink); });
  return static_cast<double>(done) / time / 1e9;
}

void bench_linear(WeightType type, std::int64_t n_out, std::int64_t n_in, std::size_t total_bytes,
                  double bandwidth, double peak, double budget_seconds, ThreadPool& pool) {
  std::mt19937_64 random(1);
  const OwnedMatrix m = random_matrix(type, n_out, n_in, random);
  const std::size_t stride = (m.w.bytes + 4095) / 4096 * 4096;
  const auto copies = std::max<std::size_t>(1, total_bytes / stride);
  const Buffer buffer(copies * stride);
  for (std::size_t i = 0; i < copies; ++i)
    std::memcpy(buffer.data + i * stride, m.w.data, m.w.bytes);
  double one_row = 0;
  for (const std::int64_t rows : {1, 2, 4, 8, 16, 64, 256}) {
    const std::vector<float> x = random_activations(rows, n_in, random);
    std::vector<float> y(static_cast<std::size_t>(rows * n_out));
    Activations a(rows, n_in);
    a.set(x.data(), rows, n_in, n_in, wants_block32(type), wants_block256(type), pool);
    // Every copy is timed by itself, over and over for a while; the 20th percentile is what a call
    // takes when nothing else holds the core.
    std::vector<double> times;
    double spent = 0;
    for (std::size_t i = 0; (spent < budget_seconds || i < copies) && i < 4 * copies; ++i) {
      PackedMatrix w = m.w;
      w.data = buffer.data + i % copies * stride;
      times.push_back(seconds([&] { linear(w, a, nullptr, y.data(), n_out, pool); }));
      spent += times.back();
      if (spent > 4 * budget_seconds) break;
    }
    std::sort(times.begin(), times.end());
    const double time = times[times.size() / 5];
    if (rows == 1) one_row = time;
    const double gigabytes = static_cast<double>(m.w.bytes) / time / 1e9;
    const double gmacs = static_cast<double>(n_out * n_in * rows) / time / 1e9;
    std::printf(
        "%-5s %5ldx%-5ld rows %3ld  %9.1f us  %6.2f GB/s (%3.0f%%)  %7.1f GMAC/s (%3.0f%%)  %5.2fx "
        "one row\n",
        weight_type_name(type), static_cast<long>(n_out), static_cast<long>(n_in),
        static_cast<long>(rows), time * 1e6, gigabytes, 100 * gigabytes / bandwidth, gmacs,
        100 * gmacs / peak, time / one_row);
  }
}

void bench_sampling(std::int64_t n_vocab) {
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> x(static_cast<std::size_t>(n_vocab));
  for (float& v : x) v = normal(random);
  std::vector<std::int32_t> ids(64);
  std::vector<float> values(64);
  std::uint64_t position = 0;
  volatile double sink = 0;
  auto report = [&](const char* name, const std::function<void()>& fn) {
    std::printf("%-24s %7ld  %8.1f us\n", name, static_cast<long>(n_vocab), least(50, fn) * 1e6);
  };
  report("argmax", [&] { sink = argmax(x.data(), n_vocab); });
  report("sample_full T=1", [&] { sink = sample_full(x.data(), n_vocab, 1.0f, 3, ++position); });
  report("sample_full T=0.5", [&] { sink = sample_full(x.data(), n_vocab, 2.0f, 3, ++position); });
  report("log_sum_exp", [&] { sink = log_sum_exp(x.data(), n_vocab, 1.25f); });
  report("top_k 64", [&] {
    sink = static_cast<double>(top_k(x.data(), n_vocab, 64, ids.data(), values.data()));
  });
}

int run(int argc, char** argv) {
  int threads = 2;
  std::size_t megabytes = 512;
  std::string only;
  double budget = 0.3;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--threads") {
      threads = std::atoi(argv[i + 1]);
    } else if (flag == "--megabytes") {
      megabytes = static_cast<std::size_t>(std::atoi(argv[i + 1]));
    } else if (flag == "--type") {
      only = argv[i + 1];
    } else if (flag == "--seconds") {
      budget = std::atof(argv[i + 1]);
    } else if (flag == "--isa" && set_isa(argv[i + 1])) {
    } else {
      std::fprintf(stderr, "linear_bench: %s %s: unknown flag or unsupported value\n", argv[i],
                   argv[i + 1]);
      return 1;
    }
  }
  one_thread = threads == 1;
  ThreadPool pool(threads);
  double bandwidth;
  {
    const Buffer buffer(megabytes << 20);
    std::memset(buffer.data, 1, buffer.bytes);
    bandwidth = read_bandwidth(buffer, pool);
  }
  const double peak = int8_peak(pool);
  std::printf("%s, %d threads, read bandwidth %.2f GB/s, int8 peak %.1f GMAC/s\n",
              std::string(isa_name(active_isa())).c_str(), threads, bandwidth, peak);
  for (WeightType type : kAllTypes) {
    if (!only.empty() && only != weight_type_name(type)) continue;
    for (auto [n_out, n_in] :
         {std::pair<std::int64_t, std::int64_t>{1536, 8960}, {8960, 1536}, {1536, 576}}) {
      if (n_in % weight_block_values(type) == 0)
        bench_linear(type, n_out, n_in, megabytes << 20, bandwidth, peak, budget, pool);
    }
  }
  if (only.empty() || only == "sampling")
    for (const std::int64_t n_vocab : {49152, 151936}) bench_sampling(n_vocab);
  return 0;
}

}  // namespace
}  // namespace foretoken::kernels

int main(int argc, char** argv) { return foretoken::kernels::run(argc, argv); }
