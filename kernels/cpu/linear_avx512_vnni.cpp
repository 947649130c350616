#include "avx512_traits.h"

namespace foretoken::kernels {
namespace {

// vpdpbusd: four unsigned-by-signed products a lane, added to 32 bits without saturation.
struct Avx512Vnni : Avx512Base {
  FORETOKEN_INLINE I dot_words(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }
  template <int kMax, int N>
  FORETOKEN_INLINE I dot(I sum, const I* w, const std::int8_t* x) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) sum = _mm512_dpbusd_epi32(sum, w[j], broadcast_pair(x + 4 * j));
    return sum;
  }
  FORETOKEN_INLINE I load_q8(const void* p) { return load(p); }
  FORETOKEN_INLINE I dot_q8(const I (&w)[8], const Record32& x) {
    return dot<255, 8>(broadcast(&x.minus128_sum), w, x.q);
  }
};

}  // namespace

void linear_groups_avx512_vnni(const LinearTask& task, std::int64_t first_group,
                               std::int64_t last_group) {
  groups_of_type<Avx512Vnni>(task, first_group, last_group);
}

}  // namespace foretoken::kernels
