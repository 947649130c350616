#include "kernels/cpu/attention_avx512_vector.h"

namespace foretoken::kernels {

const AttentionKernels kAttentionAvx512Vnni = Attention<Avx512<true>>::table();

}  // namespace foretoken::kernels
