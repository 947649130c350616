// The CUDA attention kernels' bodies on emulated threads: fragments, partition into parts, masks,
// merging and law 1 are theirs; the device's own arithmetic is checked by
// tests/bench/cuda_attention_bench.cu.
#include <gtest/gtest.h>

#include "kernels/cuda/attention_body.h"
#include "tests/support/simt.h"
#include "tests/unit/kv/cuda_attention_checks.h"

namespace foretoken::kv_test::cuda {
namespace {

namespace gpu = foretoken::kernels::cuda;
using simt::Block;
using simt::Thread;

template <int D, int NT>
void attention_blocks(const gpu::AttentionGrid& grid) {
  using P = gpu::AttentionPartition;
  constexpr int kStages = 4 - NT;
  using Memory = gpu::BlockMemory<D, NT, kStages, P>;
  for (int x = 0; x < (grid.most_tiles + NT - 1) / NT; ++x) {
    for (int y = 0; y < grid.n_items; ++y) {
      for (int z = 0; z < grid.n_kv_heads; ++z) {
        Block(Memory::kThreads, Memory::kBytes, x, y, z, [&](Thread& thread) {
          gpu::attention_block<Thread, D, NT, kStages, P>(thread, grid);
        });
      }
    }
  }
}
template <int D, int Rows>
void finish_blocks(const gpu::AttentionGrid& grid, int n_kv_heads) {
  for (int x = 0; x < grid.n_tiles * gpu::kTileRows / Rows; ++x) {
    for (int y = 0; y < n_kv_heads; ++y) {
      Block(gpu::kFinishThreads, sizeof(gpu::FinishMemory<D, Rows>), x, y, 0,
            [&](Thread& thread) { gpu::finish_block<Thread, D, Rows>(thread, grid); });
    }
  }
}
template <int D>
void emulate(const gpu::AttentionGrid& grid) {
  for (int x = 0; x < grid.n_tiles; ++x) {
    for (int y = 0; y < grid.n_kv_heads; ++y) {
      Block(gpu::PrepareMemory<D>::kThreads, sizeof(gpu::PrepareMemory<D>), x, y, 0,
            [&](Thread& thread) { gpu::prepare_block<Thread, D>(thread, grid); });
    }
  }
  if (grid.most_tiles == 1)
    attention_blocks<D, 1>(grid);
  else
    attention_blocks<D, 2>(grid);
  if (grid.n_tiles == 1)  // each of the two at times, as on a device
    finish_blocks<D, 1>(grid, grid.n_kv_heads);
  else
    finish_blocks<D, 8>(grid, grid.n_kv_heads);
}

std::vector<std::vector<float>> run(const CudaFixture& f, const std::vector<CudaRows>& rows,
                                    const CudaMode& mode) {
  kernels::AttentionCall call = cuda_call(f, mode);
  std::vector<std::vector<float>> out;
  std::vector<kernels::AttentionRows> sequences;
  for (const CudaRows& r : rows) out.emplace_back(r.q.size(), -7e7f);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const SyntheticSequence& s = f.sequences[rows[i].sequence];
    sequences.push_back({rows[i].first, rows[i].n, rows[i].q.data(), out[i].data(),
                         s.hot_pages.data(), s.sealed_pages.data()});
  }
  call.sequences = sequences.data();
  call.n_sequences = static_cast<int>(sequences.size());
  gpu::AttentionGrid grid;
  std::vector<std::byte> scratch(
      gpu::plan_grid<gpu::AttentionPartition>(call, 0, call.n_sequences, nullptr, grid) + 16,
      std::byte{0xff});
  std::byte* at =
      scratch.data() + (16 - reinterpret_cast<std::uintptr_t>(scratch.data()) % 16) % 16;
  gpu::plan_grid<gpu::AttentionPartition>(call, 0, call.n_sequences, at, grid);
  if (f.shape.d == 64)
    emulate<64>(grid);
  else
    emulate<128>(grid);
  return out;
}

constexpr CudaShape kShapes[] = {{64, 6, 2}, {128, 4, 1}, {64, 7, 1}, {128, 2, 2}};

// The kernels here are the same on every instruction set: once is enough. Sanitizers take the
// fibers' jumps between stacks for errors.
class CudaAttention : public ::testing::Test {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "fibers";
#endif
    if (kernels::active_isa() != kernels::supported_isas().back())
      GTEST_SKIP() << "run on the widest";
  }
};

TEST_F(CudaAttention, MatchesDouble) {
  std::mt19937_64 random(5);
  for (const CudaShape shape : kShapes) {
    CudaFixture f(shape, {1500, 420}, 21);
    for (const CudaMode mode : {CudaMode{true, 1, 4}, {true, 0, 1}, {false, 1, 4}}) {
      // Borders: the first page read as codes, a block of rows across a page's, a warp's and a
      // part's.
      const int border = 64 * (mode.sink_pages + mode.window_pages + 1);
      for (const std::int64_t first : {border - 2, 638, 1085, 1494}) {
        const int n = 1 + static_cast<int>(random() % 6);
        const std::vector<CudaRows> rows = {{0, first, n, f.queries(n)}, {1, 417, 3, f.queries(3)}};
        const auto out = run(f, rows, mode);
        for (int i = 0; i < 2; ++i) {
          EXPECT_LE(cuda_error(f, rows[i], out[i], mode), mode.int2 ? 1e-2 : 2e-5)
              << shape.d << " at " << rows[i].first << " x " << rows[i].n
              << (mode.int2 ? " int2 window " : " bf16 ") << mode.window_pages;
        }
      }
    }
  }
}

// Negative control: the tolerance sees one page read in the wrong way.
TEST_F(CudaAttention, AWrongSplitIsFarOff) {
  CudaFixture f(kShapes[0], {700}, 22);
  const CudaMode mode{true, 1, 4};
  const std::vector<CudaRows> rows = {{0, 600, 4, f.queries(4)}};
  const auto out = run(f, rows, mode);
  EXPECT_LE(cuda_error(f, rows[0], out[0], mode), 1e-2);
  EXPECT_GT(cuda_error(f, rows[0], out[0], {true, 1, 5}), 3e-2);
  EXPECT_GT(cuda_error(f, rows[0], out[0], {true, 0, 4}), 3e-2);
}

TEST_F(CudaAttention, ARowDoesNotDependOnItsCompany) {
  for (const CudaShape shape : {kShapes[0], kShapes[1]}) {
    CudaFixture f(shape, {1420, 420}, 23);
    for (const CudaMode mode : {CudaMode{true, 1, 4}, {false, 1, 4}}) {
      const std::vector<CudaRows> rows = {{0, 1402, 16, f.queries(16)}, {1, 380, 7, f.queries(7)}};
      EXPECT_EQ(0, cuda_rows_that_depend_on_company(f, rows, mode, {1, 5}, run));
    }
  }
}

}  // namespace
}  // namespace foretoken::kv_test::cuda
