// The CUDA attention on a device: what it must do (cuda_attention_checks.h), then its times.
//   cuda_attention_bench check    against double arithmetic; law 1 by bits
//   cuda_attention_bench time     by batch, depth and rows: INT2, 16 bits, and their share of
//                                 the bandwidth
// Times are medians of replayed graphs of calls over rotating copies of the data, larger together
// than the device's cache; `attention` is the one kernel over the pages, `call` all three kernels.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "kernels/cuda/attention.h"
#include "tests/unit/kv/cuda_attention_checks.h"

namespace foretoken::kv_test {
namespace {

namespace gpu = kernels::cuda;

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
  std::exit(1);
}
#define CHECK(x) check(x, #x)

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t n) : n_(n) {
    CHECK(cudaMalloc(&p_, std::max(n, std::size_t{1}) * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& x) : DeviceArray(x.size()) {
    CHECK(cudaMemcpy(p_, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceArray(DeviceArray&& other) noexcept : p_(other.p_), n_(other.n_) { other.p_ = nullptr; }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(p_); }
  T* data() const { return p_; }
  std::size_t size() const { return n_; }

 private:
  T* p_ = nullptr;
  std::size_t n_;
};

// The transforms of a layer on the device.
struct DeviceTransforms {
  std::vector<DeviceArray<float>> arrays;
  std::vector<kernels::KvTransform> views;
  DeviceArray<kernels::KvTransform> device{0};
  explicit DeviceTransforms(const CudaFixture& f) : views(f.transforms), device(upload(f)) {}

 private:
  DeviceArray<kernels::KvTransform> upload(const CudaFixture& f) {
    for (std::size_t h = 0; h < views.size(); ++h) {
      const auto put = [&](const std::vector<float>& x) -> const float* {
        arrays.emplace_back(x);
        return arrays.back().data();
      };
      views[h].k_query = put(f.owned[h].k_query);
      views[h].v_decode = put(f.owned[h].v_decode);
      views[h].v_mean = put(f.owned[h].v_mean);
    }
    return DeviceArray<kernels::KvTransform>(views);
  }
};

// Runs calls over a fixture's pages, uploaded once.
class DeviceRun {
 public:
  explicit DeviceRun(const CudaFixture& f) : transforms_(f) {
    for (const SyntheticSequence& s : f.sequences) {
      hot_.push_back(upload(s.hot)), sealed_.push_back(upload(s.sealed));
      hot_pages_.emplace_back(pointers(hot_.back(), s.hot));
      sealed_pages_.emplace_back(pointers(sealed_.back(), s.sealed));
    }
  }
  std::vector<std::vector<float>> operator()(const CudaFixture& f,
                                             const std::vector<CudaRows>& rows,
                                             const CudaMode& mode) {
    kernels::AttentionCall call = cuda_call(f, mode);
    call.transforms = transforms_.device.data();
    std::vector<DeviceArray<float>> q, out;
    std::vector<kernels::AttentionRows> sequences;
    for (const CudaRows& r : rows) {
      q.emplace_back(r.q);
      out.emplace_back(std::vector<float>(r.q.size(), -7e7f));
      sequences.push_back({r.first, r.n, q.back().data(), out.back().data(),
                           hot_pages_[r.sequence].data(), sealed_pages_[r.sequence].data()});
    }
    call.sequences = sequences.data();
    call.n_sequences = static_cast<int>(sequences.size());
    DeviceArray<std::byte> scratch(gpu::attention_scratch_bytes(call));
    CHECK(cudaMemset(scratch.data(), 0xff, scratch.size()));
    CHECK(gpu::attention(call, scratch.data(), scratch.size(), nullptr));
    CHECK(cudaDeviceSynchronize());
    std::vector<std::vector<float>> result;
    for (const auto& o : out) {
      result.emplace_back(o.size());
      CHECK(cudaMemcpy(result.back().data(), o.data(), o.size() * 4, cudaMemcpyDeviceToHost));
    }
    return result;
  }

 private:
  static DeviceArray<std::byte> upload(const std::vector<std::vector<std::byte>>& pages) {
    std::vector<std::byte> all;
    for (const auto& p : pages) all.insert(all.end(), p.begin(), p.end());
    return DeviceArray<std::byte>(all);
  }
  static std::vector<const std::byte*> pointers(const DeviceArray<std::byte>& device,
                                                const std::vector<std::vector<std::byte>>& pages) {
    std::vector<const std::byte*> at;
    for (std::size_t p = 0; p < pages.size(); ++p)
      at.push_back(device.data() + p * pages[0].size());
    return at;
  }
  DeviceTransforms transforms_;
  std::vector<DeviceArray<std::byte>> hot_, sealed_;
  std::vector<DeviceArray<const std::byte*>> hot_pages_, sealed_pages_;
};

int check_device() {
  constexpr CudaShape kShapes[] = {
      {128, 32, 8}, {64, 9, 3}, {64, 14, 2}, {128, 12, 2}, {128, 4, 4}};
  int failures = 0;
  std::mt19937_64 random(5);
  for (const CudaShape shape : kShapes) {
    // (The longest only where double arithmetic over it is quick: parts enough for every chain.)
    const int long_one = shape.n_kv_heads <= 3 ? 12100 : 2200;
    CudaFixture f(shape, {4700, 420, long_one}, 31);
    DeviceRun run(f);
    double worst[2] = {0, 0};
    for (const CudaMode mode : {CudaMode{true, 1, 4}, {true, 0, 1}, {true, 3, 2}, {false, 1, 4}}) {
      const int border = 64 * (mode.sink_pages + mode.window_pages + 1);
      for (const std::int64_t first : {0, border - 2, 638, 1085, 2046, 4690}) {
        const int n =
            std::min<int>(1 + static_cast<int>(random() % 16), 4700 - static_cast<int>(first));
        const std::vector<CudaRows> rows = {{0, first, n, f.queries(n)},
                                            {1, 417, 3, f.queries(3)},
                                            {2, long_one - 1, 1, f.queries(1)}};
        const auto out = run(f, rows, mode);
        for (int i = 0; i < 3; ++i) {
          if (i == 2 && first != 638) continue;  // long in double; once a mode
          const double error = cuda_error(f, rows[i], out[i], mode);
          worst[mode.int2] = std::max(worst[mode.int2], error);
          if (error <= (mode.int2 ? 1e-2 : 2e-5)) continue;
          ++failures;
          std::printf("FAILED d %d %d/%d %s sink %d window %d: rows %lld + %d are %g off\n",
                      shape.d, shape.n_heads, shape.n_kv_heads, mode.int2 ? "int2" : "bf16",
                      mode.sink_pages, mode.window_pages, static_cast<long long>(rows[i].first),
                      rows[i].n, error);
        }
      }
    }
    int differing = 0, controls = 0;
    for (const CudaMode mode : {CudaMode{true, 1, 4}, {false, 1, 4}}) {
      const std::vector<CudaRows> rows = {{0, 4674, 16, f.queries(16)},
                                          {1, 380, 7, f.queries(7)},
                                          {2, long_one - 100, 8, f.queries(8)},
                                          {2, long_one / 2, 2, f.queries(2)}};
      const auto again = [&](const CudaFixture& g, const std::vector<CudaRows>& r,
                             const CudaMode& m) { return run(g, r, m); };
      differing += cuda_rows_that_depend_on_company(f, rows, mode, {1, 2, 4, 5, 8}, again);
      // Negative control: the comparison sees a difference of one unit in one query.
      auto other = rows;
      other[0].q[0] *= 1.001f;
      const auto a = run(f, rows, mode), b = run(f, other, mode);
      controls += std::memcmp(a[0].data(), b[0].data(), a[0].size() * 4) != 0;
    }
    if (differing != 0 || controls != 2) ++failures;
    std::printf(
        "d %3d %2d/%d  INT2 %.1e  bf16 %.1e from double; rows that depend on company: %d%s\n",
        shape.d, shape.n_heads, shape.n_kv_heads, worst[1], worst[0], differing,
        controls == 2 ? "" : "  (the control saw nothing)");
    std::fflush(stdout);
  }
  return failures;
}

[[maybe_unused]] __device__ std::uint32_t hash(std::uint64_t x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull, x ^= x >> 33;
  return static_cast<std::uint32_t>(x);
}
// Random pages: any codes, scales of 1/2 to 1, means and 16-bit values of +-1/2 to 1.
__global__ void fill_sealed(std::uint32_t* words, std::size_t n, int page_words, int code_words,
                            int scale_words) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < n;
       i += std::size_t{gridDim.x} * blockDim.x) {
    const std::uint32_t x = hash(i);
    const int at = static_cast<int>(i % page_words);
    words[i] = at < code_words                 ? x
               : at < code_words + scale_words ? (x & 0x03ff03ffu) | 0x38003800u
                                               : (x & 0x807f807fu) | 0x3f003f00u;
  }
}
__global__ void fill_hot(std::uint32_t* words, std::size_t n) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < n;
       i += std::size_t{gridDim.x} * blockDim.x)
    words[i] = (hash(i) & 0x807f807fu) | 0x3f003f00u;
}
__global__ void read_all(const uint4* p, std::size_t n, std::uint32_t* sink) {
  std::uint32_t sum = 0;
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x;
  for (; i + 7 * stride < n; i += 8 * stride) {
    uint4 x[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) x[k] = __ldcs(p + i + k * stride);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum ^= x[k].x ^ x[k].y ^ x[k].z ^ x[k].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

class Timer {
 public:
  Timer() {
    CHECK(cudaStreamCreate(&stream_));
    CHECK(cudaEventCreate(&begin_));
    CHECK(cudaEventCreate(&end_));
  }
  ~Timer() {
    cudaEventDestroy(begin_), cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }
  cudaStream_t stream() const { return stream_; }
  // Median seconds of one of n calls, launched together as a graph.
  template <class Call>
  double median(int n, Call call) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < n; ++i) call(i);
    CHECK(cudaStreamEndCapture(stream_, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<double> times;
    double total = 0;
    for (int i = 0; i < 200 && (i < 7 || total < 0.05); ++i) {
      CHECK(cudaEventRecord(begin_, stream_));
      CHECK(cudaGraphLaunch(exec, stream_));
      CHECK(cudaEventRecord(end_, stream_));
      CHECK(cudaEventSynchronize(end_));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, begin_, end_));
      if (i >= 2) times.push_back(ms * 1e-3 / n), total += ms * 1e-3;
    }
    CHECK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphDestroy(graph));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_, end_;
};

struct Bench {
  static constexpr int kD = 128, kHeads = 32, kKvHeads = 8, kSink = 1, kWindow = 4;
  CudaFixture fixture{{kD, kHeads, kKvHeads}, {}, 41};
  DeviceTransforms transforms{fixture};
  Timer timer;
  double read_rate = 0;  // bytes a second

  void measure_reading() {
    const std::size_t bytes = std::size_t{4} << 30;
    DeviceArray<std::uint32_t> x(bytes / 4), sink(1);
    fill_hot<<<2048, 256>>>(x.data(), x.size());
    CHECK(cudaDeviceSynchronize());
    for (const int blocks : {264, 528, 1056, 2112}) {
      const double t = timer.median(3, [&](int) {
        read_all<<<blocks, 512, 0, timer.stream()>>>(reinterpret_cast<const uint4*>(x.data()),
                                                     bytes / 16, sink.data());
      });
      read_rate = std::max(read_rate, bytes / t);
    }
    std::printf("reading 4 GiB: %.0f GB/s\n", read_rate / 1e9);
  }

  // Pages of one layer, slabs of all KV heads, in random order.
  struct Pages {
    DeviceArray<std::uint32_t> hot, sealed;
    std::vector<DeviceArray<const std::byte*>> hot_at, sealed_at;  // by copy * batch + sequence
    int copies;
  };
  Pages make_pages(int batch, int depth, bool int2) {
    const int n_pages = (depth + kPageTokens - 1) / kPageTokens;
    const std::size_t hot_slab = kernels::hot_page_bytes(kD) * kKvHeads,
                      sealed_slab =
                          kernels::sealed_page_bytes(kernels::KvMode::kInt2, kD) * kKvHeads;
    const std::size_t per_copy = batch * std::size_t(n_pages) * (int2 ? sealed_slab : hot_slab);
    const int copies =
        static_cast<int>(std::clamp<std::size_t>((std::size_t{640} << 20) / per_copy, 1, 32));
    const std::size_t sealed_pages = int2 ? std::size_t(copies) * batch * n_pages : 0;
    const int hot_each = int2 ? kSink + kWindow + 2 : n_pages;
    const std::size_t hot_pages = std::size_t(copies) * batch * hot_each;
    Pages p{DeviceArray<std::uint32_t>(hot_pages * hot_slab / 4),
            DeviceArray<std::uint32_t>(sealed_pages * sealed_slab / 4),
            {},
            {},
            copies};
    fill_hot<<<2048, 256>>>(p.hot.data(), p.hot.size());
    if (int2)
      fill_sealed<<<2048, 256>>>(
          p.sealed.data(), p.sealed.size(),
          static_cast<int>(kernels::sealed_page_bytes(kernels::KvMode::kInt2, kD) / 4), 8 * kD, 64);
    CHECK(cudaDeviceSynchronize());
    std::mt19937_64 random(7);
    std::vector<std::size_t> hot_order(hot_pages), sealed_order(sealed_pages);
    std::iota(hot_order.begin(), hot_order.end(), 0),
        std::shuffle(hot_order.begin(), hot_order.end(), random);
    std::iota(sealed_order.begin(), sealed_order.end(), 0);
    std::shuffle(sealed_order.begin(), sealed_order.end(), random);
    std::size_t next_hot = 0, next_sealed = 0;
    for (int s = 0; s < copies * batch; ++s) {
      std::vector<const std::byte*> hot(n_pages, nullptr), sealed(n_pages, nullptr);
      for (int i = 0; i < n_pages; ++i) {
        if (!int2 || i < kSink || i >= n_pages - kWindow - 2)
          hot[i] = reinterpret_cast<std::byte*>(p.hot.data()) +
                   hot_order[next_hot++ % hot_pages] * hot_slab;
        if (int2)
          sealed[i] = reinterpret_cast<std::byte*>(p.sealed.data()) +
                      sealed_order[next_sealed++] * sealed_slab;
      }
      p.hot_at.emplace_back(hot), p.sealed_at.emplace_back(sealed);
    }
    return p;
  }

  struct Times {
    double call, parts, bytes;
  };
  Times measure(const Pages& pages, int batch, int depth, int n_rows, bool int2) {
    const int width = kHeads * kD;
    DeviceArray<float> q(normal(std::size_t(batch) * n_rows * width, fixture.random)),
        out(std::size_t(batch) * n_rows * width);
    std::vector<kernels::AttentionRows> sequences(pages.copies * batch);
    for (int s = 0; s < pages.copies * batch; ++s) {
      const std::size_t at = std::size_t(s % batch) * n_rows * width;
      sequences[s] = {depth - n_rows,         n_rows,
                      q.data() + at,          out.data() + at,
                      pages.hot_at[s].data(), pages.sealed_at[s].data()};
    }
    kernels::AttentionCall call = cuda_call(fixture, {int2, kSink, kWindow});
    call.transforms = transforms.device.data();
    call.sequences = sequences.data();
    call.n_sequences = batch;
    DeviceArray<std::byte> scratch(gpu::attention_scratch_bytes(call));
    const int n = std::max(pages.copies, 4);
    const auto timed = [&](int stages) {
      return timer.median(n, [&](int i) {
        kernels::AttentionCall one = call;
        one.sequences = sequences.data() + std::size_t(i % pages.copies) * batch;
        CHECK(gpu::attention(one, scratch.data(), scratch.size(), timer.stream(), stages));
      });
    };
    Times t;
    t.call = timed(gpu::kAllStages);
    t.parts = timed(gpu::kAttendPages);
    const int n_pages = (depth + kPageTokens - 1) / kPageTokens;
    const int sealed = int2 ? std::max(0, (depth - 1) / kPageTokens - kWindow - kSink) : 0;
    t.bytes = double(batch) * kKvHeads *
              (double(sealed) * kernels::sealed_page_bytes(kernels::KvMode::kInt2, kD) +
               double(n_pages - sealed) * kernels::hot_page_bytes(kD));
    return t;
  }

  void table() {
    std::printf(
        "batch  depth  rows   int2: call us  attention us  %% of reading  (bound us)   bf16: call "
        "us  attention us  %% of reading   call ratio\n");
    for (const int batch : {1, 8, 32}) {
      for (const int depth : {8192, 32768, 81920, 131072}) {
        Times t[3][2];
        for (const bool int2 : {false, true}) {
          const Pages pages = make_pages(batch, depth, int2);
          int i = 0;
          for (const int rows : {1, 4, 8}) t[i++][int2] = measure(pages, batch, depth, rows, int2);
        }
        for (int i = 0; i < 3; ++i) {
          const Times &a = t[i][1], &b = t[i][0];
          std::printf("%5d %6d  %4d   %14.1f %13.1f %12.0f  %11.1f   %14.1f %13.1f %13.0f %12.2f\n",
                      batch, depth, 1 << (i == 0 ? 0 : i + 1), a.call * 1e6, a.parts * 1e6,
                      100 * a.bytes / a.parts / read_rate, a.bytes / read_rate * 1e6, b.call * 1e6,
                      b.parts * 1e6, 100 * b.bytes / b.parts / read_rate, b.call / a.call);
        }
        std::fflush(stdout);
      }
    }
  }
};

int run(const std::string& mode) {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, %d multiprocessors, %d MiB of L2\n", device.name, device.multiProcessorCount,
              device.l2CacheSize >> 20);
  if (mode == "check") {
    const int failures = check_device();
    std::printf("%s\n", failures ? "FAILED" : "passed");
    return failures != 0;
  }
  Bench bench;
  bench.measure_reading();
  bench.table();
  return 0;
}

}  // namespace
}  // namespace foretoken::kv_test

int main(int argc, char** argv) {
  const std::string mode = argc == 2 ? argv[1] : "";
  if (mode != "check" && mode != "time") {
    std::fprintf(stderr, "cuda_attention_bench check | time\n");
    return 2;
  }
  return foretoken::kv_test::run(mode);
}
