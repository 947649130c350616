#include "kernels/cpu/attention_avx512_vector.h"

namespace foretoken::kernels {

const AttentionKernels kAttentionAvx512 = Attention<Avx512<false>>::table();

}  // namespace foretoken::kernels
