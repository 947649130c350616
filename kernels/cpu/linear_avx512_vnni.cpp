#include "avx512_traits.h"

namespace foretoken::kernels {
namespace {

// vpdpbusd: four unsigned-by-signed products a lane, added to 32 bits without saturation.
struct Avx512Vnni : Avx512Base {
  static constexpr int kDotRows = 4;
  static constexpr bool kFloatSums = true;
  FORETOKEN_INLINE I dot_words(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }
  // The activation dword is an embedded broadcast: with a vpbroadcastd of its own (what GCC emits
  // for the intrinsic) the front end limits a core to 3/4 of the multiply-adds its two ports can
  // do.
  FORETOKEN_INLINE I multiply_add(I sum, I w, const std::int8_t* x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sum)
        : "v"(w), "m"(*reinterpret_cast<const std::int32_t*>(x)));
    return sum;
  }
  // Rows alternate, so that kDotRows independent sums cover the instruction's latency.
  template <int kMax, int N, int G>
  FORETOKEN_INLINE void dot(I (&sum)[G], const I* w, const std::int8_t* x, int stride) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j)
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) sum[g] = multiply_add(sum[g], w[j], x + g * stride + 4 * j);
  }
  template <int kMax, int N, int G, bool kOffset>
  FORETOKEN_INLINE void add_scaled_dot(I* sum, const I* w, const Record256* x, int first, I scale) {
    I dots[G];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g)
      dots[g] = kOffset ? broadcast(&x[g].minus32_sum[first / 16]) : zero_int();
    dot<kMax, N, G>(dots, w, x[0].q + first, static_cast<int>(sizeof(Record256)));
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) sum[g] = add_int(sum[g], multiply_int(dots[g], scale));
  }
  template <int kMax, int N, int G>
  FORETOKEN_INLINE void add_float_dot(F* sum, const I* w, const Record256* x, int first, F scale) {
    I dots[G];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) dots[g] = zero_int();
    dot<kMax, N, G>(dots, w, x[0].q + first, static_cast<int>(sizeof(Record256)));
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) sum[g] = fma(to_float(dots[g]), scale, sum[g]);
  }
  FORETOKEN_INLINE I load_q8(const void* p) { return load(p); }
  FORETOKEN_INLINE I byte_table(const std::int8_t* p) {
    return _mm512_xor_si512(signed_table(p), splat_byte(0x80));
  }
  FORETOKEN_INLINE I initial_q8(const Record32& x) { return broadcast(&x.minus128_sum); }
};

}  // namespace

void linear_groups_avx512_vnni(const LinearTask& task, std::int64_t first_group,
                               std::int64_t last_group) {
  groups_of_type<Avx512Vnni>(task, first_group, last_group);
}

}  // namespace foretoken::kernels
