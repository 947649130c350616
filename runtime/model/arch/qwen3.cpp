// Qwen 3, dense: RMS norms of q and k a head before rotation, no biases, heads whose width is the
// file's own ("attention.key_length") and no share of the hidden width.
#include "runtime/model/arch/architecture.h"
#include "runtime/model/config_reader.h"

namespace foretoken {

extern const Architecture kQwen3 = {
    .name = "qwen3", .transformers_class = "Qwen3ForCausalLM", .read = [](ConfigReader& reader) {
      AttentionSpec attention = reader.attention(/*rope_interleaved=*/false);
      attention.qkv_bias = attention.output_bias = Presence::kNone;
      attention.qk_norm = QkNorm::kPerHead;
      reader.uniform_layers(attention, Presence::kNone, Norms::kPre);
    }};

}  // namespace foretoken
