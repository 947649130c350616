// The linear kernels of every weight type: scalar, the reference a block and an output at a time;
// vectors, tiles of rows (linear_tile.h); AMX, its own for many rows.
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/weight_types.h"

namespace foretoken::kernels {
namespace {

template <ActivationForm kForm>
auto activations_of(const Activations::Impl& x, std::int64_t row, std::int64_t first_in_tile) {
  if constexpr (kForm == ActivationForm::kFloat) return x.x + (row + first_in_tile) * x.stride;
  if constexpr (kForm == ActivationForm::kBlocks32) return x.tile32(row) + first_in_tile;
  if constexpr (kForm == ActivationForm::kBlocks256) return x.tile256(row) + first_in_tile;
}
FORETOKEN_INLINE int tile_width(const Activations::Impl& x, std::int64_t row) {
  return static_cast<int>(x.n_rows - row < kActivationTile ? x.n_rows - row : kActivationTile);
}
template <class T>
FORETOKEN_INLINE const std::uint8_t* group_of(const PackedMatrix& w, std::int64_t g) {
  return reinterpret_cast<const std::uint8_t*>(w.data) +
         static_cast<std::size_t>(g) * group_bytes_of<T>(w.n_in, weight_block_values(w.type));
}

#if !defined(__AVX2__)

template <class T, ActivationForm kForm>
void groups_of(const LinearTask& task, std::int64_t first_group, std::int64_t last_group) {
  const PackedMatrix& w = task.w;
  const std::int64_t n_blocks = w.n_in / weight_block_values(w.type);
  for (std::int64_t g = first_group; g < last_group; ++g) {
    const std::uint8_t* group = group_of<T>(w, g);
    for (std::int64_t row = 0; row < task.x->n_rows; ++row) {
      const std::int64_t tile = row / kActivationTile * kActivationTile;
      const auto* x = activations_of<kForm>(*task.x, tile, row - tile);
      // Floats lie one after another, a block's records one a row of the tile.
      const std::int64_t stride =
          kForm == ActivationForm::kFloat ? weight_block_values(w.type) : tile_width(*task.x, tile);
      for (int lane = 0; lane < kPackRows && g * kPackRows + lane < w.n_out; ++lane) {
        const std::uint8_t* record = group;
        const std::uint8_t* tail = group + static_cast<std::size_t>(n_blocks) * T::record_bytes();
        float y = 0;
        for (std::int64_t b = 0; b < n_blocks; ++b) {
          y = T::add_block(record, tail, lane, x[b * stride], y);
          record += T::record_bytes();
          tail += T::tail_bytes();
        }
        const std::int64_t o = g * kPackRows + lane;
        task.y[row * task.y_stride + o] = task.bias != nullptr ? y + task.bias[o] : y;
      }
    }
  }
}

#elif !defined(__AMX_INT8__)

// Rows of a tile: see linear_tile.h.
#if defined(__AVX512VNNI__)

// vpdpbusd: four unsigned-by-signed products a lane, added to 32 bits without saturation.
struct Vector : Simd {
  static constexpr int kRows = 8, kDotRows = 4;
  static constexpr bool kFloatSums = true;
  // The activation dword is an embedded broadcast: with a vpbroadcastd of its own (what GCC emits
  // for the intrinsic) the front end limits a core to 3/4 of the multiply-adds its two ports can
  // do.
  static FORETOKEN_INLINE I multiply_add(I sum, I w, const std::int8_t* x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sum)
        : "v"(w), "m"(*reinterpret_cast<const std::int32_t*>(x)));
    return sum;
  }
  // Rows alternate, so that kDotRows independent sums cover the instruction's latency.
  template <int kMax, int N, int G>
  static FORETOKEN_INLINE void dot(I (&sum)[G], const I* w, const std::int8_t* x, int stride) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j)
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) sum[g] = multiply_add(sum[g], w[j], x + g * stride + 4 * j);
  }
  template <int kMax, int N, int G, bool kOffset>
  static FORETOKEN_INLINE void add_scaled_dot(I* sum, const I* w, const Record256* x, int first,
                                              I scale) {
    I dots[G];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) dots[g] = set_int(kOffset ? x[g].minus32_sum[first / 16] : 0);
    dot<kMax, N, G>(dots, w, x[0].q + first, static_cast<int>(sizeof(Record256)));
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) sum[g] = add_int(sum[g], multiply_int(dots[g], scale));
  }
  template <int kMax, int N, int G>
  static FORETOKEN_INLINE void add_float_dot(F* sum, const I* w, const Record256* x, int first,
                                             F scale) {
    I dots[G];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) dots[g] = set_int(0);
    dot<kMax, N, G>(dots, w, x[0].q + first, static_cast<int>(sizeof(Record256)));
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) sum[g] = fma(to_float(dots[g]), scale, sum[g]);
  }
  // Whole bytes are 128 too high, which is taken out through the sum of the activations.
  static FORETOKEN_INLINE I load_whole_bytes(const void* p) { return load_int(p); }
  static FORETOKEN_INLINE I whole_byte_table(const std::int8_t* p) {
    return bit_xor(byte_table(p), set_byte(0x80));
  }
  static FORETOKEN_INLINE I whole_bytes_sum(const Record32& x) { return set_int(x.minus128_sum); }
};

#else

// One vpmaddubsw adds two products of at most kMax * 127: as many of them as fit 16 bits are added
// up before they are widened.
struct Vector : Simd {
  static constexpr int kRows = kLanes == 16 ? 8 : 4, kDotRows = 1;
  static constexpr bool kFloatSums = false;  // a scale costs nothing: words are widened with it
  template <int kMax, int N, int G>
  static FORETOKEN_INLINE void dot(I (&sum)[G], const I* w, const std::int8_t* x, int stride) {
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g)
      sum[g] = times_words<kMax, N>(sum[g], w, x + g * stride, set_word(1));
  }
  // A sub-block's scale is the factor that the words are widened with.
  template <int kMax, int N, int G, bool kOffset>
  static FORETOKEN_INLINE void add_scaled_dot(I* sum, const I* w, const Record256* x, int first,
                                              I scale) {
    const I words = bit_or(bit_and(scale, set_int(0xffff)), shift_left<16>(scale));
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
      if constexpr (kOffset)
        sum[g] = add_int(sum[g], multiply_int(scale, set_int(x[g].minus32_sum[first / 16])));
      sum[g] = times_words<kMax, N>(sum[g], w, x[g].q + first, words);
    }
  }
  template <int kMax, int N>
  static FORETOKEN_INLINE I times_words(I sum, const I* w, const std::int8_t* x, I factor) {
    constexpr int kFit = 32767 / (kMax * 127 * 2);
    constexpr int kStep = kFit >= 8 ? 8 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      if constexpr (kMax == 255) {
        sum = add_word_products(sum, signed_byte_products(w[j], broadcast4(x + 4 * j)), factor);
      } else if (j % kStep == 0) {
        I words = byte_products(w[j], broadcast4(x + 4 * j));
        for (int i = j + 1; i < j + kStep && i < N; ++i)
          words = add_words(words, byte_products(w[i], broadcast4(x + 4 * i)));
        sum = add_word_products(sum, words, factor);
      }
    }
    return sum;
  }
  // vpmaddubsw would saturate at codes up to 255: signed ones, of which |w| <= 128 is taken.
  static FORETOKEN_INLINE I load_whole_bytes(const void* p) {
    return bit_xor(load_int(p), set_byte(0x80));
  }
  static FORETOKEN_INLINE I whole_byte_table(const std::int8_t* p) { return byte_table(p); }
  static FORETOKEN_INLINE I whole_bytes_sum(const Record32&) { return set_int(0); }
};

#endif

template <class T, int kRow = 1>
FORETOKEN_INLINE void tile_of(int rows, const Tile& t) {
  if constexpr (kRow < Vector::kRows) {
    if (rows != kRow) return tile_of<T, kRow + 1>(rows, t);
  }
  T::template tile<Vector, kRow>(t);
}

template <class T, ActivationForm kForm>
void groups_of(const LinearTask& task, std::int64_t first_group, std::int64_t last_group) {
  const PackedMatrix& w = task.w;
  const Activations::Impl& x = *task.x;
  constexpr bool kFloat = kForm == ActivationForm::kFloat;
  const std::int64_t n_blocks = w.n_in / weight_block_values(w.type);
  const std::int64_t row_bytes =
      kFloat ? w.n_in * 4
             : n_blocks * static_cast<std::int64_t>(sizeof(*activations_of<kForm>(x, 0, 0)));
  std::int64_t chunk = kResidentActivationBytes / row_bytes / kActivationTile * kActivationTile;
  if (chunk < kActivationTile) chunk = kActivationTile;
  for (std::int64_t chunk_row = 0; chunk_row < x.n_rows; chunk_row += chunk) {
    const std::int64_t chunk_end = chunk_row + chunk < x.n_rows ? chunk_row + chunk : x.n_rows;
    for (std::int64_t g = first_group; g < last_group; ++g) {
      Tile t;
      t.records = group_of<T>(w, g);
      t.tail = t.records + static_cast<std::size_t>(n_blocks) * T::record_bytes();
      t.n_blocks = n_blocks;
      t.y_stride = task.y_stride;
      for (std::int64_t row = chunk_row; row < chunk_end; row += kActivationTile) {
        const int width = tile_width(x, row);
        for (int sub = 0; sub < width; sub += Vector::kRows) {
          const int rows = width - sub < Vector::kRows ? width - sub : Vector::kRows;
          t.x = activations_of<kForm>(x, row, sub);
          t.x_stride = kFloat ? x.stride : width;
          const bool first = row == chunk_row && sub == 0;
          t.ahead = first ? kPrefetchBytes : 0;
          t.tail_ahead =
              first ? static_cast<std::size_t>(group_of<T>(w, 1) - group_of<T>(w, 0)) : 0;
          for (t.lane = 0; t.lane < kPackRows; t.lane += Vector::kLanes) {
            const std::int64_t o = g * kPackRows + t.lane;
            if (o >= w.n_out) break;
            t.lanes = static_cast<int>(w.n_out - o < Vector::kLanes ? w.n_out - o : Vector::kLanes);
            t.bias = task.bias != nullptr ? task.bias + o : nullptr;
            t.y = task.y + (row + sub) * task.y_stride + o;
            tile_of<T>(rows, t);
          }
        }
      }
    }
  }
}

#endif

}  // namespace
}  // namespace foretoken::kernels

#if defined(__AMX_INT8__)
#include "kernels/cpu/linear_amx.h"
#endif

namespace foretoken::kernels::FORETOKEN_ISA {

constinit const LinearTable kLinear = {
#define FORETOKEN_ROW(name, ggml_type, safetensors, values, bytes, form) \
  groups_of<name, ActivationForm::form>,
    FORETOKEN_WEIGHT_TYPES(FORETOKEN_ROW)
#undef FORETOKEN_ROW
};

}  // namespace foretoken::kernels::FORETOKEN_ISA
