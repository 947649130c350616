#include "kernels/cpu/attention_avx512_vector.h"

namespace foretoken::kernels {

const AttentionTable kAttentionAvx512 = attention_table<Avx512<false>>();

}  // namespace foretoken::kernels
