#include "kernels/cpu/attention_avx512_vector.h"

namespace foretoken::kernels {

const AttentionTable kAttentionAvx512Vnni = attention_table<Avx512<true>>();

}  // namespace foretoken::kernels
