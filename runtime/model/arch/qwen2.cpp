// Qwen 2 and 2.5: Llama with biases of q, k and v, and rotation of halves.
#include "runtime/model/arch/architecture.h"
#include "runtime/model/config_reader.h"

namespace foretoken {

extern const Architecture kQwen2 = {
    .name = "qwen2", .transformers_class = "Qwen2ForCausalLM", .read = [](ConfigReader& reader) {
      AttentionSpec attention = reader.attention(/*rope_interleaved=*/false);
      attention.qkv_bias = Presence::kRequired;
      reader.uniform_layers(attention, Presence::kNone, Norms::kPre);
    }};

}  // namespace foretoken
