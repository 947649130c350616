// The bodies of the attention kernels, one thread's view of a block. G is the machine: CUDA's
// (attention.cu) or, in the tests, threads emulated on the host (tests/support/simt.h), so that CI
// covers everything here but the machine's own instructions. Its operations are warp- or block-wide
// where CUDA's are; nothing here contracts or reorders a sum.
//
// A warp multiplies codes by eight query rows with the tensor cores: the codes are the 16-row
// operand A, the queries B. The bytes of kv_page_layout.h are A's fragments as they lie: lane 4 r +
// q of a warp holds of rows r and r + 8 the inner indices q stands for, and which these are is free
// as long as B agrees.
// - K: rows are tokens, q stands for the group of 16 digits, a dword per token. 8-bit integers.
// - V: rows are digits, q stands for the block of 16 tokens, a dword per digit. fp16: two bits
//   where they lie are the subnormal code * 4^j * 2^-24, so that unpacking is a mask; 4^-j goes
//   into the weight, which keeps its 11 bits down to 4^j * 2^-14 (V scales are about 1).
// So a page's 4096 bytes of codes take 8 loads of 16 bytes a lane, 80 + 144 integer operations, and
// 16 + 32 matrix instructions for eight rows. Logits leave the matrix unit with a token's row r and
// query rows 2 q, 2 q + 1 in each lane; weights enter it by query row r and block q: the exchange
// below.
#pragma once

#include "kernels/cuda/attention_grid.h"

#ifdef __CUDACC__
#define FORETOKEN_GPU __device__ __forceinline__
#define FORETOKEN_UNROLL_ALL _Pragma("unroll")
#define FORETOKEN_UNROLL_NONE _Pragma("unroll 1")
#else
#define FORETOKEN_GPU inline
#define FORETOKEN_UNROLL_ALL
#define FORETOKEN_UNROLL_NONE
#endif

namespace foretoken::kernels::cuda {

constexpr float kMinusInf = -__builtin_inff();
constexpr float kLog2E = 1.44269504f;
constexpr float kInverseSubnormal = 16777216.0f;  // 2^24

struct alignas(16) Vec4 {
  std::uint32_t x[4];
};
struct alignas(8) Vec2 {
  std::uint32_t x[2];
};

// Shared memory of a block: Stages INT2 pages a warp on their way.
template <int D, int NT, int Stages, class P>
struct BlockMemory {
  static constexpr int kThreads = 32 * P::kWarps;
  // A sealed page in two pieces (an asynchronous copy costs 14 instructions): K and half of V, then
  // the rest, 64 bytes further on, so that of a load's four q only pairs share banks.
  static constexpr int kFirstBytes = 24 * D, kSecondBytes = 10 * D + 256;
  static constexpr int kSecond = kFirstBytes + 64, kTail = kSecond + 8 * D;
  static constexpr int kPage = kSecond + kSecondBytes;
  // Weights of 64 tokens by 8 rows, 16 bits each: entry (row n, block b, quad j) of 8 bytes at
  // 82 (j / 2) + 20 (n / 2) + 8 (n % 2) + 2 b + j % 2. Free of bank conflicts for both the writing
  // lanes (n = 2 q + 0 or 1, b = r / 4 or + 2, j = r % 4) and the reading ones (n = r, b = q, j and
  // j + 1 at once).
  static constexpr int kExchange = 8 * 2 * 82;
  static constexpr int kStateStride = D + 8;
  static constexpr int kBarriers = 0, kMeta = 128;
  static constexpr int kPages = kMeta + P::kWarps * kTileRows * 8;
  static constexpr int kSealedExchange = kPages + P::kWarps * Stages * kPage;
  static constexpr int kHotExchange = kPages;
  static constexpr int kStates = kPages;  // once the pages are done with
  static constexpr int kSealedBytes = kSealedExchange + P::kWarps * NT * kExchange;
  static constexpr int kHotBytes = kHotExchange + P::kWarps * NT * 2 * kExchange;
  static constexpr int kStateBytes = kStates + P::kWarps * kTileRows * kStateStride * 4;
  static constexpr int kBytes = std::max(kSealedBytes, std::max(kHotBytes, kStateBytes));
  static_assert(P::kWarps * Stages * 8 <= kMeta && kPage % 16 == 0 && kPages % 16 == 0);
  static constexpr int v_block(int q) { return 16 * D + q * 4 * D + q / 2 * 64; }
};

FORETOKEN_GPU int exchange_at(int row, int block, int quad) {
  return (quad / 2) * 82 + (row / 2) * 20 + (row % 2) * 8 + block * 2 + quad % 2;
}

// A warp's softmax state of NT tiles: query rows 2 q and 2 q + 1 of each, mass and weights of this
// lane's tokens alone until the end. Output o of tile i, element e: row 2 q + e % 2, its channel by
// the caller.
template <int D, int NT>
struct WarpState {
  float maximum[NT][2], mass[NT][2], weights[NT][2];
  float o[NT][D / 16][4];

  FORETOKEN_GPU void clear() {
    FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
      FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
        maximum[n][e] = kMinusInf;
        mass[n][e] = weights[n][e] = 0;
      }
      FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 16; ++i) {
        FORETOKEN_UNROLL_ALL for (int e = 0; e < 4; ++e) o[n][i][e] = 0;
      }
    }
  }

  // Logits of a page, [NT][8 tokens of this lane][2 rows], to exp2(logit - maximum).
  template <class G>
  FORETOKEN_GPU void add_logits(G& g, float (&x)[NT][8][2]) {
    FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
      float scale[2], reference[2];
      bool grew = false;
      FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
        float most = x[n][0][e];
        FORETOKEN_UNROLL_ALL for (int t = 1; t < 8; ++t) most = g.max(most, x[n][t][e]);
        FORETOKEN_UNROLL_ALL for (int step = 4; step < 32; step *= 2) most =
            g.max(most, g.shuffle_xor(most, step));
        most = g.max(most, maximum[n][e]);
        grew = grew || most > maximum[n][e];
        reference[e] = most == kMinusInf ? 0.0f : most;  // a row that has seen nothing yet
        scale[e] = g.exp2(maximum[n][e] - reference[e]);
        maximum[n][e] = most;
      }
      if (g.any(grew)) {  // elsewhere the scales are exactly 1
        FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
          mass[n][e] *= scale[e];
          weights[n][e] *= scale[e];
        }
        FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 16; ++i) {
          FORETOKEN_UNROLL_ALL for (int e = 0; e < 4; ++e) o[n][i][e] *= scale[e % 2];
        }
      }
      FORETOKEN_UNROLL_ALL for (int t = 0; t < 8; ++t) {
        FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
          x[n][t][e] = g.exp2(x[n][t][e] - reference[e]);
          mass[n][e] += x[n][t][e];
        }
      }
    }
  }
};

// The sequence of a launch whose range, beginning at its `first`, holds index x.
template <int GridSequence::*First>
FORETOKEN_GPU const GridSequence& sequence_of(const AttentionGrid& grid, int x) {
  int low = 0, high = grid.n_sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (grid.sequences[middle].*First <= x)
      low = middle;
    else
      high = middle;
  }
  return grid.sequences[low];
}

// One tile of queries of one KV head: scaled, split, transformed, quantised. Block: 4 D threads.
template <int D>
struct PrepareMemory {
  static constexpr int kThreads = 4 * D;
  alignas(16) float x[D][kTileRows];
  float y[4][kTileRows][D];
};
template <class G, int D>
FORETOKEN_GPU void prepare_block(G& g, const AttentionGrid& grid) {
  g.release_next_grid();
  const int tile = g.block_x(), head = g.block_y(), thread = g.thread();
  const GridSequence& s = sequence_of<&GridSequence::first_tile>(grid, tile);
  PrepareMemory<D>& memory = *reinterpret_cast<PrepareMemory<D>*>(g.shared());
  QueryTile<D>& out = *reinterpret_cast<QueryTile<D>*>(
      grid.queries +
      (static_cast<std::size_t>(tile) * grid.n_kv_heads + head) * sizeof(QueryTile<D>));
  const int n_query_rows = s.n_rows * grid.group, first_row = (tile - s.first_tile) * kTileRows;
  // y = x k_query: four chains over a quarter of the channels each. The matrix is on its way first.
  const bool int2 = grid.int2 && s.sealed_end > 0;
  const int j = thread % D, quarter = thread / D;
  float column[D / 4];
  if (int2) {
    const float* m = grid.transforms[head].k_query + quarter * (D / 4) * D + j;
    FORETOKEN_UNROLL_ALL for (int c = 0; c < D / 4; ++c) column[c] = m[c * D];
  }
  for (int i = thread; i < kTileRows * D; i += 4 * D) {
    const int n = i / D, c = i % D, row = first_row + n;
    float x = 0;
    if (row < n_query_rows) {
      const float* q = s.q + row / grid.group * grid.q_stride +
                       static_cast<std::size_t>(head * grid.group + row % grid.group) * D;
      x = q[c] * (grid.scale * kLog2E);
    }
    memory.x[c][n] = x;
    const std::uint16_t high = float_to_bf16_finite(x);
    const std::uint16_t low = float_to_bf16_finite(x - bf16_to_float(high));
    const int hot = c % 8 / 2 * (D / 4) + c / 16 * 4 + c % 16 / 8 * 2 + c % 2;
    out.mean_high[n][c] = out.hot_high[n][hot] = high;
    out.mean_low[n][c] = out.hot_low[n][hot] = low;
  }
  if (!int2) return;
  g.sync_block();
  float sum[kTileRows] = {};
  FORETOKEN_UNROLL_ALL for (int c = 0; c < D / 4; ++c) {
    FORETOKEN_UNROLL_ALL for (int n = 0; n < kTileRows; ++n) sum[n] =
        g.fma(memory.x[quarter * (D / 4) + c][n], column[c], sum[n]);
  }
  FORETOKEN_UNROLL_ALL for (int n = 0; n < kTileRows; ++n) memory.y[quarter][n][j] = sum[n];
  g.sync_block();
  const int n = g.warp(), lane = g.lane();
  if (n >= kTileRows) return;
  float y[D / 32], most = 0;
  FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 32; ++i) {
    const int c = lane + 32 * i;
    y[i] = ((memory.y[0][n][c] + memory.y[1][n][c]) + memory.y[2][n][c]) + memory.y[3][n][c];
    most = g.max(most, y[i] < 0 ? -y[i] : y[i]);
  }
  FORETOKEN_UNROLL_ALL for (int step = 1; step < 32; step *= 2) most =
      g.max(most, g.shuffle_xor(most, step));
  const float inverse = most > 0 ? 127.0f / most : 0.0f;
  float total = 0;  // of integers below 2^14: exact
  FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 32; ++i) {
    float digit = g.round(y[i] * inverse);
    digit = digit > 127.0f ? 127.0f : digit < -127.0f ? -127.0f : digit;
    out.digits[n][lane + 32 * i] = static_cast<std::int8_t>(digit);
    total += digit;
  }
  FORETOKEN_UNROLL_ALL for (int step = 1; step < 32; step *= 2) total += g.shuffle_xor(total, step);
  if (lane == 0) {
    const float step = most * (1.0f / 127.0f);
    out.step16[n] = step * (1.0f / 16.0f);
    out.offset[n] = -1.5f * step * total;
  }
}

// What the two kinds of part have in common: where a warp stands in its block, and how the block's
// states become one.
template <class G, int D, int NT, int Stages, class P>
struct Part {
  using Memory = BlockMemory<D, NT, Stages, P>;
  using State = WarpState<D, NT>;
  G& g;
  const AttentionGrid& grid;
  const GridSequence& s;
  int state;       // of the sequence
  int head, tile;  // the block's first of the sequence
  int split, r, q;

  FORETOKEN_GPU Part(G& g_, const AttentionGrid& grid_, const GridSequence& s_, int state_)
      : g(g_),
        grid(grid_),
        s(s_),
        state(state_),
        head(g_.block_z()),
        tile(g_.block_x() * NT),
        split(g_.warp()),
        r(g_.lane() / 4),
        q(g_.lane() % 4) {}

  // A tile past the sequence's last repeats that one; store() drops it.
  FORETOKEN_GPU const QueryTile<D>& queries(int n) const {
    const int t = tile + n < s.n_tiles ? tile + n : s.n_tiles - 1;
    return *reinterpret_cast<const QueryTile<D>*>(
        grid.queries + (static_cast<std::size_t>(s.first_tile + t) * grid.n_kv_heads + head) *
                           sizeof(QueryTile<D>));
  }
  // Position of query row 2 q + e of tile n; of a row past the last, the last's.
  FORETOKEN_GPU std::int64_t position(int n, int e) const {
    const int row = ((tile + n) * kTileRows + 2 * q + e) / grid.group;
    return s.first_position + (row < s.n_rows ? row : s.n_rows - 1);
  }
  // Of eight positions, the tokens of this lane: block r / 4 or that + 2, quad r % 4.
  FORETOKEN_GPU int token(int t) const { return 16 * (r / 4 + t / 4 * 2) + 4 * (r % 4) + t % 4; }

  // Merges the block's warps in order of their pages. channel(i): of o[.][i][0]; [2] is the next
  // one's.
  template <class Channel>
  FORETOKEN_GPU void store(State& mine, Channel channel) {
    StateMeta* meta = reinterpret_cast<StateMeta*>(g.shared() + Memory::kMeta);
    float* o = reinterpret_cast<float*>(g.shared() + Memory::kStates);
    FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
      g.sync_block();  // the pages, or the tile before, are done with
      FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
        float mass = mine.mass[n][e];
        FORETOKEN_UNROLL_ALL for (int step = 4; step < 32; step *= 2) mass +=
            g.shuffle_xor(mass, step);
        const int row = split * kTileRows + 2 * q + e;
        if (r == 0) meta[row] = {mine.maximum[n][e], mass};
        FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 16; ++i) {
          Vec2 pair;
          pair.x[0] = g.bits(mine.o[n][i][e]);
          pair.x[1] = g.bits(mine.o[n][i][2 + e]);
          *reinterpret_cast<Vec2*>(o + row * Memory::kStateStride + channel(i)) = pair;
        }
      }
      g.sync_block();
      if (tile + n >= s.n_tiles) continue;
      constexpr int kRowThreads = Memory::kThreads / kTileRows;
      const int row = g.thread() / kRowThreads, at = (tile + n) * kTileRows + row;
      float a[P::kWarps], most = meta[row].maximum, mass = 0;
      FORETOKEN_UNROLL_ALL for (int w = 1; w < P::kWarps; ++w) most =
          g.max(most, meta[w * kTileRows + row].maximum);
      const float reference = most == kMinusInf ? 0.0f : most;
      FORETOKEN_UNROLL_ALL for (int w = 0; w < P::kWarps; ++w) {
        const StateMeta part = meta[w * kTileRows + row];
        a[w] = g.exp2(part.maximum - reference);
        mass = g.fma(a[w], part.mass, mass);
      }
      const std::size_t padded = s.padded_rows();
      float* to = grid.states + s.first_state +
                  ((static_cast<std::size_t>(state) * grid.n_kv_heads + head) * padded + at) * D;
      for (int c = g.thread() % kRowThreads * 4; c < D; c += kRowThreads * 4) {
        float sum[4] = {};
        FORETOKEN_UNROLL_ALL for (int w = 0; w < P::kWarps; ++w) {
          float x[4];
          g.load_floats(o + (w * kTileRows + row) * Memory::kStateStride + c, x);
          FORETOKEN_UNROLL_ALL for (int k = 0; k < 4; ++k) sum[k] = g.fma(a[w], x[k], sum[k]);
        }
        g.store_floats(to + c, sum);
      }
      if (g.thread() % kRowThreads == 0)
        grid.meta[s.first_meta + (head * padded + at) * s.n_states() + state] = {most, mass};
    }
  }
};

// INT2 pages.
template <class G, int D, int NT, int Stages, class P>
struct SealedPart : Part<G, D, NT, Stages, P> {
  using Base = Part<G, D, NT, Stages, P>;
  using Memory = typename Base::Memory;
  using Base::Base;
  using Base::g, Base::grid, Base::s, Base::split, Base::r, Base::q;

  FORETOKEN_GPU void fetch(const std::byte* page, int buffer) {
    std::byte* to = g.shared() + Memory::kPages + (split * Stages + buffer) * Memory::kPage;
    const int barrier = split * Stages + buffer;
    g.expect_bytes(barrier, Memory::kFirstBytes + Memory::kSecondBytes);
    g.copy_async(to, page, Memory::kFirstBytes, barrier);
    g.copy_async(to + Memory::kSecond, page + Memory::kFirstBytes, Memory::kSecondBytes, barrier);
  }

  FORETOKEN_GPU void run(int part) {
    const int first = part * P::kSealedPages + split * P::kPagesPerWarp;
    const int begin = g.max(first, s.sealed_begin);
    const int n_pages = g.max(g.min(first + P::kPagesPerWarp, s.sealed_end) - begin, 0);
    // Lanes of r know page begin + r.
    const std::byte* mine =
        r < n_pages ? s.sealed[begin + r] + grid.sealed_offset + head_offset() : nullptr;
    if (q == 0 && r < Stages) g.init_barrier(split * Stages + r);
    g.barriers_ready();
    g.sync_warp();
    if (q == 0 && r < Stages && r < n_pages) fetch(mine, r);

    // q . mean of page begin + r.
    Vec4 mean[D / 32];
    FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 32; ++i) {
      mean[i] = Vec4{};
      if (mine != nullptr) mean[i] = g.load16(mine + sealed_k_mean(D) + q * (D / 2) + i * 16);
    }
    g.wait_for_previous_grid();
    float mean_dot[NT][2];
    Vec4 query[NT][D / 64];
    float step16[NT][2], offset[NT][2];
    FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
      const QueryTile<D>& tile = this->queries(n);
      float high[2][4] = {}, low[2][4] = {};  // two chains each
      FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 32; ++i) {
        const Vec4 h = g.load16(&tile.mean_high[r][q * (D / 4) + i * 8]);
        const Vec4 l = g.load16(&tile.mean_low[r][q * (D / 4) + i * 8]);
        FORETOKEN_UNROLL_ALL for (int k = 0; k < 2; ++k) {
          const std::uint32_t a[4] = {mean[i].x[2 * k], 0, mean[i].x[2 * k + 1], 0};
          g.mma_bf16(high[k], a, h.x[2 * k], h.x[2 * k + 1]);
          g.mma_bf16(low[k], a, l.x[2 * k], l.x[2 * k + 1]);
        }
      }
      FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
        mean_dot[n][e] = (high[0][e] + high[1][e]) + (low[0][e] + low[1][e]);
        step16[n][e] = tile.step16[2 * q + e];
        offset[n][e] = tile.offset[2 * q + e];
      }
      FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 64; ++i) query[n][i] =
          g.load16(&tile.digits[r][64 * i + 16 * q]);
    }
    const int all_rows_end = grid.int2_limit(s.first_position);
    typename Base::State state;
    state.clear();
    FORETOKEN_UNROLL_NONE for (int p = 0; p < n_pages; ++p) {
      const int buffer = p % Stages;
      g.wait_barrier(split * Stages + buffer, p / Stages % 2);
      const std::byte* page =
          g.shared() + Memory::kPages + (split * Stages + buffer) * Memory::kPage;
      float x[NT][8][2];
      logits(page, p, query, step16, offset, mean_dot, x);
      if (begin + p >= all_rows_end) {  // not INT2 to the rows of an earlier page
        FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
          FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
            if (begin + p < grid.int2_limit(this->position(n, e))) continue;
            FORETOKEN_UNROLL_ALL for (int t = 0; t < 8; ++t) x[n][t][e] = kMinusInf;
          }
        }
      }
      state.add_logits(g, x);
      values(page, x, state);
      g.sync_warp();  // all lanes are done with the buffer
      if (q == 0 && r == p + Stages && r < n_pages) fetch(mine, buffer);
    }
    // Sums of w * digits to sums of w * (digits - 1.5).
    FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
      FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
        float weights = state.weights[n][e] * (1 << 2 * (r % 4));
        FORETOKEN_UNROLL_ALL for (int step = 4; step < 32; step *= 2) weights +=
            g.shuffle_xor(weights, step);
        FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 16; ++i) {
          FORETOKEN_UNROLL_ALL for (int h = 0; h < 4; h += 2) {
            state.o[n][i][h + e] = g.fma(state.o[n][i][h + e], kInverseSubnormal, -1.5f * weights);
          }
        }
      }
    }
    const int row = 4 * r;
    this->store(state, [row](int i) { return 32 * (i / 2) + row + 2 * (i % 2); });
  }

 private:
  FORETOKEN_GPU std::size_t head_offset() const { return this->head * grid.sealed_stride; }

  // Half-precision scales of this lane's tokens (token()).
  FORETOKEN_GPU void scales(const std::byte* at, float (&x)[8]) const {
    FORETOKEN_UNROLL_ALL for (int b = 0; b < 2; ++b) {
      const Vec2 pairs = *reinterpret_cast<const Vec2*>(at + (r + 8 * b) * 8);
      FORETOKEN_UNROLL_ALL for (int i = 0; i < 2; ++i) {
        x[4 * b + 2 * i] = g.half_low(pairs.x[i]);
        x[4 * b + 2 * i + 1] = g.half_high(pairs.x[i]);
      }
    }
  }

  FORETOKEN_GPU void logits(const std::byte* page, int p, const Vec4 (&query)[NT][D / 64],
                            const float (&step16)[NT][2], const float (&offset)[NT][2],
                            const float (&mean_dot)[NT][2], float (&x)[NT][8][2]) const {
    Vec4 words[2][D / 64];
    FORETOKEN_UNROLL_ALL for (int b = 0; b < 2; ++b) {
      FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 64; ++i) words[b][i] =
          *reinterpret_cast<const Vec4*>(page + (r / 4 + 2 * b) * (4 * D) + (4 * i + q) * 64 +
                                         r % 4 * 16);
    }
    float scale[8];
    scales(page + Memory::kTail, scale);
    float mean[NT][2];
    FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
      FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) mean[n][e] =
          g.shuffle(mean_dot[n][e], 4 * p + q);
    }
    FORETOKEN_UNROLL_ALL for (int b = 0; b < 2; ++b) {
      // Pairs of bits 0 and 1 of a byte as they are, 2 and 3 times 16 in a sum of their own. Sums
      // that do not wait for one another lie next to each other.
      std::int32_t low[2][NT][4] = {}, high[2][NT][4] = {};
      FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 64; ++i) {
        FORETOKEN_UNROLL_ALL for (int half = 0; half < 2; ++half) {
          const std::uint32_t w0 = words[b][i].x[2 * half], w1 = words[b][i].x[2 * half + 1];
          const std::uint32_t v0 = w0 >> 2, v1 = w1 >> 2;
          constexpr std::uint32_t kLow = 0x03030303u, kHigh = 0x30303030u;
          const std::uint32_t a[4] = {w0 & kLow, w1 & kLow, v0 & kLow, v1 & kLow};
          const std::uint32_t c[4] = {w0 & kHigh, w1 & kHigh, v0 & kHigh, v1 & kHigh};
          FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
            g.mma_u8s8(low[half][n], a, query[n][i].x[0], query[n][i].x[1]);
            g.mma_u8s8(high[half][n], c, query[n][i].x[2], query[n][i].x[3]);
          }
        }
      }
      FORETOKEN_UNROLL_ALL for (int half = 0; half < 2; ++half) {
        FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
          FORETOKEN_UNROLL_ALL for (int e = 0; e < 4; ++e) {
            const int t = 4 * b + 2 * half + e / 2;
            const auto sum16 = static_cast<float>(16 * low[half][n][e] + high[half][n][e]);
            x[n][t][e % 2] =
                g.fma(scale[t], g.fma(sum16, step16[n][e % 2], offset[n][e % 2]), mean[n][e % 2]);
          }
        }
      }
    }
  }

  // o += (p * scale of V) codes.
  FORETOKEN_GPU void values(const std::byte* page, float (&p)[NT][8][2],
                            typename Base::State& state) const {
    Vec2* exchange = reinterpret_cast<Vec2*>(g.shared() + Memory::kSealedExchange +
                                             g.warp() * NT * Memory::kExchange);
    Vec4 words[D / 32];
    FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 32; ++i) words[i] =
        *reinterpret_cast<const Vec4*>(page + Memory::v_block(q) + i * 128 + r * 16);
    float scale[8];
    scales(page + Memory::kTail + 128, scale);
    const float quad_weight = g.power_of_two(-2 * (r % 4));
    FORETOKEN_UNROLL_ALL for (int t = 0; t < 8; ++t) scale[t] *= quad_weight;
    FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
      FORETOKEN_UNROLL_ALL for (int b = 0; b < 2; ++b) {
        FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
          float w[4];
          FORETOKEN_UNROLL_ALL for (int t = 0; t < 4; ++t) {
            w[t] = p[n][4 * b + t][e] * scale[4 * b + t];
            state.weights[n][e] += w[t];
          }
          Vec2 pairs;
          pairs.x[0] = g.pack_half(w[0], w[2]), pairs.x[1] = g.pack_half(w[1], w[3]);
          exchange[n * 164 + exchange_at(2 * q, r / 4, r % 4) + 8 * e + 4 * b] = pairs;
        }
      }
    }
    g.sync_warp();
    Vec4 weights[NT][2];
    FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
      FORETOKEN_UNROLL_ALL for (int h = 0; h < 2; ++h) weights[n][h] =
          *reinterpret_cast<const Vec4*>(exchange + n * 164 + exchange_at(r, q, 2 * h));
    }
    FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 32; i += 2) {  // four tiles at a time, as above
      FORETOKEN_UNROLL_ALL for (int j = 0; j < 4; ++j) {
        const std::uint32_t mask = 0x00030003u << 2 * j;
        FORETOKEN_UNROLL_ALL for (int k = 0; k < 4; ++k) {
          const std::uint32_t w0 = words[i + k / 2].x[k % 2 * 2];
          const std::uint32_t w1 = words[i + k / 2].x[k % 2 * 2 + 1];
          const std::uint32_t a[4] = {w0 & mask, w1 & mask, w0 >> 8 & mask, w1 >> 8 & mask};
          FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
            const Vec4& w = weights[n][j / 2];
            g.mma_f16(state.o[n][2 * i + k], a, w.x[j % 2 * 2], w.x[j % 2 * 2 + 1]);
          }
        }
      }
    }
  }
};

// Sixteen-bit pages: a page a warp, queries and weights in two bf16 parts.
template <class G, int D, int NT, int Stages, class P>
struct HotPart : Part<G, D, NT, Stages, P> {
  using Base = Part<G, D, NT, Stages, P>;
  using Memory = typename Base::Memory;
  using Base::Base;
  using Base::g, Base::grid, Base::s, Base::split, Base::r, Base::q;

  FORETOKEN_GPU void run(int part) {
    const int page_index = part * P::kHotPages + split;
    const std::int64_t page_position = static_cast<std::int64_t>(page_index) * kPageTokens;
    const std::int64_t last = s.first_position + s.n_rows - 1;
    typename Base::State state;
    state.clear();
    // Some row reads it in 16 bits: the first, or all.
    const int first_limit = grid.int2_limit(s.first_position);
    const bool wanted =
        page_position <= last && (page_index < grid.sink_pages || page_index >= first_limit);
    const std::byte* page = nullptr;
    if (wanted) page = s.hot[page_index] + grid.hot_offset + this->head * grid.hot_stride;
    g.wait_for_previous_grid();
    if (wanted) {
      float x[NT][8][2];
      logits(page, x);
      if (page_position + kPageTokens - 1 > s.first_position || page_index < s.sealed_end) {
        FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
          FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
            const std::int64_t position = this->position(n, e);
            const bool int2 =
                page_index >= grid.sink_pages && page_index < grid.int2_limit(position);
            FORETOKEN_UNROLL_ALL for (int t = 0; t < 8; ++t) {
              if (int2 || page_position + this->token(t) > position) x[n][t][e] = kMinusInf;
            }
          }
        }
      }
      state.add_logits(g, x);
      const std::int64_t n_tokens = last + 1 - page_position;
      if (n_tokens < kPageTokens)
        values<true>(page, x, static_cast<int>(n_tokens), state);
      else
        values<false>(page, x, kPageTokens, state);
    }
    const int row = 8 * r;
    this->store(state, [row](int i) { return 64 * (i / 4) + row + 2 * (i % 4); });
  }

 private:
  FORETOKEN_GPU void logits(const std::byte* page, float (&x)[NT][8][2]) const {
    FORETOKEN_UNROLL_ALL for (int b = 0; b < 2; ++b) {
      float sum[NT][2][2][4] = {};  // [half][high, low of the query]
      const std::byte* block = page + (r / 4 + 2 * b) * (32 * D) + q * 64 + r % 4 * 16;
      FORETOKEN_UNROLL_ALL for (int k2 = 0; k2 < D / 32; ++k2) {
        Vec4 k[4];
        FORETOKEN_UNROLL_ALL for (int i = 0; i < 4; ++i) k[i] =
            g.load16(block + (4 * k2 + i) * 256);
        FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
          const QueryTile<D>& tile = this->queries(n);
          const Vec4 high = g.load16(&tile.hot_high[r][q * (D / 4) + k2 * 8]);
          const Vec4 low = g.load16(&tile.hot_low[r][q * (D / 4) + k2 * 8]);
          FORETOKEN_UNROLL_ALL for (int i = 0; i < 2; ++i) {
            FORETOKEN_UNROLL_ALL for (int half = 0; half < 2; ++half) {
              const std::uint32_t a[4] = {k[2 * i].x[2 * half], k[2 * i].x[2 * half + 1],
                                          k[2 * i + 1].x[2 * half], k[2 * i + 1].x[2 * half + 1]};
              g.mma_bf16(sum[n][half][0], a, high.x[2 * i], high.x[2 * i + 1]);
              g.mma_bf16(sum[n][half][1], a, low.x[2 * i], low.x[2 * i + 1]);
            }
          }
        }
      }
      FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
        FORETOKEN_UNROLL_ALL for (int half = 0; half < 2; ++half) {
          FORETOKEN_UNROLL_ALL for (int e = 0; e < 4; ++e) x[n][4 * b + 2 * half + e / 2][e % 2] =
              sum[n][half][0][e] + sum[n][half][1][e];
        }
      }
    }
  }

  // Ragged: rows of V past n_tokens are stale bytes, and 0 * NaN is NaN: they are read as 0.
  template <bool Ragged>
  FORETOKEN_GPU void values(const std::byte* page, float (&p)[NT][8][2], int n_tokens,
                            typename Base::State& state) const {
    Vec2* exchange = reinterpret_cast<Vec2*>(g.shared() + Memory::kHotExchange +
                                             g.warp() * NT * 2 * Memory::kExchange);
    FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
      FORETOKEN_UNROLL_ALL for (int b = 0; b < 2; ++b) {
        FORETOKEN_UNROLL_ALL for (int e = 0; e < 2; ++e) {
          Vec2 high, low;
          FORETOKEN_UNROLL_ALL for (int i = 0; i < 2; ++i) {
            const float w0 = p[n][4 * b + i][e], w1 = p[n][4 * b + 2 + i][e];
            high.x[i] = g.pack_bf16(w0, w1);
            low.x[i] = g.pack_bf16(w0 - bf16_to_float(static_cast<std::uint16_t>(high.x[i])),
                                   w1 - bf16_to_float(static_cast<std::uint16_t>(high.x[i] >> 16)));
          }
          const int at = exchange_at(2 * q + e, r / 4 + 2 * b, r % 4);
          exchange[n * 328 + at] = high;
          exchange[n * 328 + 164 + at] = low;
        }
      }
    }
    g.sync_warp();
    Vec4 weights[NT][2][2];
    FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
      FORETOKEN_UNROLL_ALL for (int l = 0; l < 2; ++l) {
        FORETOKEN_UNROLL_ALL for (int h = 0; h < 2; ++h) {
          weights[n][l][h] = *reinterpret_cast<const Vec4*>(exchange + n * 328 + l * 164 +
                                                            exchange_at(r, q, 2 * h));
        }
      }
    }
    const std::byte* v = page + hot_v_offset(D, 0) + r * 16;
    FORETOKEN_UNROLL_ALL for (int j = 0; j < 4; ++j) {
      FORETOKEN_UNROLL_ALL for (int i = 0; i < D / 64; ++i) {
        Vec4 rows[4];
        FORETOKEN_UNROLL_ALL for (int t = 0; t < 4; ++t) {
          const int slot = 16 * q + 4 * j + t;
          rows[t] = Vec4{};
          if (!Ragged || slot < n_tokens) rows[t] = g.load16(v + (slot * D + 64 * i) * 2);
        }
        FORETOKEN_UNROLL_ALL for (int c = 0; c < 4; ++c) {
          const std::uint32_t a[4] = {
              g.low_halves(rows[0].x[c], rows[2].x[c]), g.high_halves(rows[0].x[c], rows[2].x[c]),
              g.low_halves(rows[1].x[c], rows[3].x[c]), g.high_halves(rows[1].x[c], rows[3].x[c])};
          FORETOKEN_UNROLL_ALL for (int n = 0; n < NT; ++n) {
            FORETOKEN_UNROLL_ALL for (int l = 0; l < 2; ++l) {
              const Vec4& w = weights[n][l][j / 2];
              g.mma_bf16(state.o[n][4 * i + c], a, w.x[j % 2 * 2], w.x[j % 2 * 2 + 1]);
            }
          }
        }
      }
    }
  }
};

// Grid: (blocks of NT tiles, items, KV heads): blocks that read the same pages run together.
template <class G, int D, int NT, int Stages, class P>
FORETOKEN_GPU void attention_block(G& g, const AttentionGrid& grid) {
  g.release_next_grid();
  const GridSequence& s = sequence_of<&GridSequence::first_item>(grid, g.block_y());
  if (g.block_x() * NT >= s.n_tiles) return;
  const int state = g.block_y() - s.first_item;
  if (state < s.n_hot())
    HotPart<G, D, NT, Stages, P>(g, grid, s, state)
        .run(state < s.n_low ? state : s.high_begin + state - s.n_low);
  else
    SealedPart<G, D, NT, Stages, P>(g, grid, s, state).run(s.sealed_part + state - s.n_hot());
}

// Merges a sequence's parts and leaves the INT2 basis. Block: kFinishThreads, for Rows rows (1, or
// the eight of a tile) of one KV head. A row's parts are merged by one online rescale in ascending
// order of position, as the CPU merges its segments: with a and b the weights of what came before
// and of the next part, o = fma(b, next o, a * o).
inline constexpr int kFinishThreads = 256;
template <int D, int Rows>
struct FinishMemory {
  float o[2][Rows][D];  // by kind: 16-bit, INT2
  float decoded[kFinishThreads / D][Rows][D];
  float mass[Rows][2];  // all, INT2
};
// The state of the i-th part in order of position: the low 16-bit ones, INT2, the high 16-bit ones.
FORETOKEN_GPU int state_in_order(const GridSequence& s, int i) {
  return i < s.n_low ? i : i < s.n_low + s.n_sealed ? i - s.n_low + s.n_hot() : i - s.n_sealed;
}
template <class G, int D, int Rows>
FORETOKEN_GPU void finish_block(G& g, const AttentionGrid& grid) {
  g.release_next_grid();
  using Memory = FinishMemory<D, Rows>;
  Memory& memory = *reinterpret_cast<Memory*>(g.shared());
  constexpr int kBlocks = kTileRows / Rows;
  const int tile = g.block_x() / kBlocks, head = g.block_y();
  const GridSequence& s = sequence_of<&GridSequence::first_tile>(grid, tile);
  const int first_row = (tile - s.first_tile) * kTileRows + g.block_x() % kBlocks * Rows;
  const int n_rows = g.min(Rows, s.n_rows * grid.group - first_row);
  if (n_rows <= 0) return;
  const int n_states = s.n_states(), n_hot = s.n_hot();
  const std::size_t padded = s.padded_rows();
  // For a single row the matrix is on its way before the states are there: what it waits for is
  // latency.
  constexpr int kShares = kFinishThreads / D;
  const int j = g.thread() % D, share = g.thread() / D;
  const float* m = nullptr;
  float early[Rows == 1 ? D / kShares : 1];
  if (s.sealed_end > 0) {
    m = grid.transforms[head].v_decode + share * (D / kShares) * D + j;
    if constexpr (Rows == 1) {
      FORETOKEN_UNROLL_ALL for (int c = 0; c < D / kShares; ++c) early[c] = m[c * D];
    }
  }
  g.wait_for_previous_grid();

  // A thread merges channel j of rows `share`, share + kShares, .. of one kind, and computes the
  // weights, which are the row's, for itself.
  for (int unit = share; unit < 2 * n_rows; unit += kShares) {
    const int n = unit / 2, kind = unit % 2;
    const std::size_t row = head * padded + first_row + n;
    const StateMeta* meta = grid.meta + s.first_meta + row * static_cast<std::size_t>(n_states);
    const float* states = grid.states + s.first_state + row * D + j;
    float maximum = kMinusInf, mass = 0, int2_mass = 0, o = 0;
    constexpr int kAhead = 4;  // parts on their way
    FORETOKEN_UNROLL_NONE for (int first = 0; first < n_states; first += kAhead) {
      float x[kAhead] = {};
      StateMeta of[kAhead];
      FORETOKEN_UNROLL_ALL for (int i = 0; i < kAhead; ++i) {
        of[i] = {kMinusInf, 0};
        if (first + i >= n_states) continue;
        const int k = state_in_order(s, first + i);
        of[i] = meta[k];
        if ((k >= n_hot) == (kind == 1))
          x[i] = states[static_cast<std::size_t>(k) * grid.n_kv_heads * padded * D];
      }
      FORETOKEN_UNROLL_ALL for (int i = 0; i < kAhead; ++i) {
        const float most = g.max(maximum, of[i].maximum);
        const float reference = most == kMinusInf ? 0.0f : most;  // nothing seen yet
        const float a = g.exp2(maximum - reference), b = g.exp2(of[i].maximum - reference);
        const bool int2 = first + i >= s.n_low && first + i < s.n_low + s.n_sealed;
        maximum = most;
        mass = g.fma(b, of[i].mass, mass * a);
        int2_mass = g.fma(b, int2 ? of[i].mass : 0.0f, int2_mass * a);
        o = g.fma(b, x[i], o * a);
      }
    }
    memory.o[kind][n][j] = o;
    if (j == 0 && kind == 0) memory.mass[n][0] = mass, memory.mass[n][1] = int2_mass;
  }
  g.sync_block();

  // out = (o + int2 mass * v_mean + o2 v_decode) / mass.
  if (s.sealed_end > 0) {
    float sum[Rows] = {};
    FORETOKEN_UNROLL_ALL for (int c = 0; c < D / kShares; ++c) {
      const float column = Rows == 1 ? early[Rows == 1 ? c : 0] : m[c * D];
      FORETOKEN_UNROLL_ALL for (int n = 0; n < Rows; ++n) sum[n] =
          g.fma(memory.o[1][n][share * (D / kShares) + c], column, sum[n]);
    }
    FORETOKEN_UNROLL_ALL for (int n = 0; n < Rows; ++n) memory.decoded[share][n][j] = sum[n];
    g.sync_block();
  }
  for (int n = share; n < n_rows; n += kShares) {
    const int row = first_row + n;
    float o = memory.o[0][n][j];
    if (grid.int2_limit(s.first_position + row / grid.group) > 0) {
      float decoded = memory.decoded[0][n][j];
      FORETOKEN_UNROLL_ALL for (int i = 1; i < kShares; ++i) decoded += memory.decoded[i][n][j];
      o = g.fma(grid.transforms[head].v_mean[j], memory.mass[n][1], o) + decoded;
    }
    s.out[row / grid.group * grid.out_stride +
          static_cast<std::size_t>(head * grid.group + row % grid.group) * D + j] =
        o * (1.0f / memory.mass[n][0]);
  }
}

}  // namespace foretoken::kernels::cuda
