// The device's side of attention_body.h: its instructions, the kernels and their launch.
#include "kernels/cuda/attention.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/attention_body.h"

namespace foretoken::kernels::cuda {
namespace {

extern __shared__ __align__(128) unsigned char block_memory[];

#define FORETOKEN_DEVICE __device__ __forceinline__

// What attention_body.h calls G. Shared memory begins with the copy barriers, eight bytes each.
struct Device {
  FORETOKEN_DEVICE int thread() const { return threadIdx.x; }
  FORETOKEN_DEVICE int warp() const { return threadIdx.x / 32; }
  FORETOKEN_DEVICE int lane() const { return threadIdx.x % 32; }
  FORETOKEN_DEVICE int block_x() const { return blockIdx.x; }
  FORETOKEN_DEVICE int block_y() const { return blockIdx.y; }
  FORETOKEN_DEVICE int block_z() const { return blockIdx.z; }
  FORETOKEN_DEVICE std::byte* shared() const { return reinterpret_cast<std::byte*>(block_memory); }

  FORETOKEN_DEVICE void sync_block() const { __syncthreads(); }
  FORETOKEN_DEVICE void sync_warp() const { __syncwarp(); }
  FORETOKEN_DEVICE float shuffle(float x, int lane) const { return __shfl_sync(~0u, x, lane); }
  FORETOKEN_DEVICE float shuffle_xor(float x, int step) const {
    return __shfl_xor_sync(~0u, x, step);
  }
  FORETOKEN_DEVICE bool any(bool x) const { return __any_sync(~0u, x); }

  FORETOKEN_DEVICE void mma_u8s8(std::int32_t (&c)[4], const std::uint32_t (&a)[4],
                                 std::uint32_t b0, std::uint32_t b1) const {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  FORETOKEN_DEVICE void mma_f16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) const {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  FORETOKEN_DEVICE void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                 std::uint32_t b1) const {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }

  static FORETOKEN_DEVICE std::uint32_t shared_address(const void* p) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
  }
  FORETOKEN_DEVICE std::uint32_t barrier_address(int index) const {
    return shared_address(block_memory) + index * 8;
  }
  FORETOKEN_DEVICE void init_barrier(int index) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier_address(index)) : "memory");
  }
  FORETOKEN_DEVICE void barriers_ready() const {  // to the copy engine
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  FORETOKEN_DEVICE void expect_bytes(int barrier, int bytes) const {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier_address(barrier)),
        "r"(bytes)
        : "memory");
  }
  FORETOKEN_DEVICE void copy_async(std::byte* to, const std::byte* from, int bytes,
                                   int barrier) const {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
        "[%3];" ::"r"(shared_address(to)),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier_address(barrier))
        : "memory");
  }
  FORETOKEN_DEVICE void wait_barrier(int barrier, int parity) const {
    std::uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(barrier_address(barrier)), "r"(parity)
          : "memory");
    }
  }
  // Of kernels on one stream, launched to overlap.
  FORETOKEN_DEVICE void release_next_grid() const {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  }
  FORETOKEN_DEVICE void wait_for_previous_grid() const {
    asm volatile("griddepcontrol.wait;" ::: "memory");
  }

  static FORETOKEN_DEVICE float max(float a, float b) { return fmaxf(a, b); }
  static FORETOKEN_DEVICE int max(int a, int b) { return a > b ? a : b; }
  static FORETOKEN_DEVICE int min(int a, int b) { return a < b ? a : b; }
  static FORETOKEN_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
  static FORETOKEN_DEVICE float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static FORETOKEN_DEVICE float round(float x) { return rintf(x); }
  static FORETOKEN_DEVICE float power_of_two(int n) { return __int_as_float((127 + n) << 23); }
  static FORETOKEN_DEVICE std::uint32_t bits(float x) { return __float_as_uint(x); }
  static FORETOKEN_DEVICE Vec4 load16(const void* p) { return *static_cast<const Vec4*>(p); }
  template <int N>
  static FORETOKEN_DEVICE void load_floats(const float* p, float (&x)[N]) {
    if constexpr (N == 4) {
      const float4 v = *reinterpret_cast<const float4*>(p);
      x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else {
      static_assert(N == 2);
      const float2 v = *reinterpret_cast<const float2*>(p);
      x[0] = v.x, x[1] = v.y;
    }
  }
  static FORETOKEN_DEVICE void store_floats(float* p, const float (&x)[4]) {
    *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
  }
  static FORETOKEN_DEVICE float half_low(std::uint32_t x) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(x)));
  }
  static FORETOKEN_DEVICE float half_high(std::uint32_t x) { return half_low(x >> 16); }
  static FORETOKEN_DEVICE std::uint32_t pack_half(float low, float high) {
    std::uint32_t x;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
  }
  static FORETOKEN_DEVICE std::uint32_t pack_bf16(float low, float high) {
    std::uint32_t x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
  }
  static FORETOKEN_DEVICE std::uint32_t low_halves(std::uint32_t x, std::uint32_t y) {
    return __byte_perm(x, y, 0x5410);
  }
  static FORETOKEN_DEVICE std::uint32_t high_halves(std::uint32_t x, std::uint32_t y) {
    return __byte_perm(x, y, 0x7632);
  }
};

template <int D>
__global__ void __launch_bounds__(PrepareMemory<D>::kThreads)
    prepare_kernel(const __grid_constant__ AttentionGrid grid) {
  Device g;
  prepare_block<Device, D>(g, grid);
}
// Blocks a multiprocessor: what shared memory allows at two stages (43 KiB at d = 128 and one
// tile), and registers with outputs of 32 NT of them.
using P = AttentionPartition;

// INT2 pages of a warp on their way, and blocks of a multiprocessor that registers are rationed
// for. At depth 80K, batch 1, an H100 needs for the pages (us; stages 2, 3, 4 with 4, 3, 2 blocks):
// one tile 25.6, 24.6, 29.4; two tiles (3, 3, 2 blocks) 31.7, 34.1, 42.4. At batch 32, depth 32K:
// 248, 242, 247 and 296, 310, 334.
template <int NT>
inline constexpr int kStages = NT == 1 ? 3 : 2;
inline constexpr int kBlocksPerSm = 3;
template <int D, int NT>
using Memory = BlockMemory<D, NT, kStages<NT>, P>;
template <int D, int NT>
__global__ void __launch_bounds__((Memory<D, NT>::kThreads), kBlocksPerSm)
    attention_kernel(const __grid_constant__ AttentionGrid grid) {
  Device g;
  attention_block<Device, D, NT, kStages<NT>, P>(g, grid);
}
template <int D, int Rows>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const __grid_constant__ AttentionGrid grid) {
  Device g;
  finish_block<Device, D, Rows>(g, grid);
}

// After the previous kernel of the stream has released it, not ended, if `overlap`.
template <class Kernel>
cudaError_t launch(Kernel* kernel, dim3 blocks, int threads, std::size_t shared_bytes, bool overlap,
                   cudaStream_t stream, const AttentionGrid& grid) {
  if (shared_bytes > (48 << 10)) {
    const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(shared_bytes));
    if (e != cudaSuccess) return e;
  }
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = overlap ? 1 : 0;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, grid);
}

template <int D, int NT>
cudaError_t launch_parts(const AttentionGrid& grid, cudaStream_t stream, bool overlap) {
  const dim3 blocks((grid.most_tiles + NT - 1) / NT, grid.n_items, grid.n_kv_heads);
  return launch(attention_kernel<D, NT>, blocks, Memory<D, NT>::kThreads, Memory<D, NT>::kBytes,
                overlap, stream, grid);
}
template <int D, int Rows>
cudaError_t launch_finish(const AttentionGrid& grid, cudaStream_t stream) {
  return launch(finish_kernel<D, Rows>, dim3(grid.n_tiles * kTileRows / Rows, grid.n_kv_heads),
                kFinishThreads, sizeof(FinishMemory<D, Rows>), true, stream, grid);
}

template <int D>
cudaError_t launch_stages(const AttentionGrid& grid, int stages, cudaStream_t stream) {
  cudaError_t e = cudaSuccess;
  if (stages & kPrepareQueries)
    e = launch(prepare_kernel<D>, dim3(grid.n_tiles, grid.n_kv_heads), PrepareMemory<D>::kThreads,
               sizeof(PrepareMemory<D>), false, stream, grid);
  if (e == cudaSuccess && stages & kAttendPages)
    e = grid.most_tiles == 1 ? launch_parts<D, 1>(grid, stream, stages == kAllStages)
                             : launch_parts<D, 2>(grid, stream, stages == kAllStages);
  // Few rows: a block each, so that more multiprocessors share the work; many: a block per tile,
  // which reads v_decode once for its eight.
  constexpr int kFewBlocks = 4 * 132;
  if (e == cudaSuccess && stages & kMergeParts)
    e = grid.n_tiles * kTileRows * grid.n_kv_heads <= kFewBlocks
            ? launch_finish<D, 1>(grid, stream)
            : launch_finish<D, 8>(grid, stream);
  return e;
}

#undef FORETOKEN_DEVICE

}  // namespace

std::size_t attention_scratch_bytes(const AttentionCall& call) {
  std::size_t most = 0;
  AttentionGrid grid;
  for (int first = 0; first < call.n_sequences; first += kMaxSequences) {
    const int n = std::min(kMaxSequences, call.n_sequences - first);
    most = std::max(most, plan_grid<P>(call, first, n, nullptr, grid));
  }
  return most;
}

cudaError_t attention(const AttentionCall& call, std::byte* scratch, std::size_t scratch_bytes,
                      cudaStream_t stream, int stages) {
  if ((call.head_dim != 64 && call.head_dim != 128) || call.n_kv_heads <= 0 ||
      call.n_heads % call.n_kv_heads != 0 ||
      (call.mode != KvMode::kBf16 && call.mode != KvMode::kInt2))
    return cudaErrorInvalidValue;
  for (int s = 0; s < call.n_sequences; ++s)
    if (call.sequences[s].parents != nullptr) return cudaErrorNotSupported;  // a tree of drafts
  AttentionGrid grid;
  for (int first = 0; first < call.n_sequences; first += kMaxSequences) {
    const int n = std::min(kMaxSequences, call.n_sequences - first);
    if (plan_grid<P>(call, first, n, scratch, grid) > scratch_bytes) return cudaErrorInvalidValue;
    const cudaError_t e = call.head_dim == 64 ? launch_stages<64>(grid, stages, stream)
                                              : launch_stages<128>(grid, stages, stream);
    if (e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

}  // namespace foretoken::kernels::cuda
