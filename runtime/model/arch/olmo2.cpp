// OLMo 2: norms after both parts instead of before them, and RMS norms of q and k over their whole
// width. (OLMo 3 has the same name and sliding windows besides.)
#include "runtime/model/arch/architecture.h"
#include "runtime/model/config_reader.h"

namespace foretoken {

extern const Architecture kOlmo2 = {
    .name = "olmo2", .transformers_class = "Olmo2ForCausalLM", .read = [](ConfigReader& reader) {
      AttentionSpec attention = reader.attention(/*rope_interleaved=*/false);
      attention.qkv_bias = attention.output_bias = Presence::kNone;
      attention.qk_norm = QkNorm::kWholeWidth;
      reader.uniform_layers(attention, Presence::kNone, Norms::kPost);
    }};

}  // namespace foretoken
