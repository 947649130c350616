// Llama: RMS norms before both parts, grouped-query attention, rotation of interleaved pairs, a
// SiLU-gated feed-forward part. Its biases are optional: some fine-tunes have them.
#include "runtime/model/arch/architecture.h"
#include "runtime/model/config_reader.h"

namespace foretoken {

extern const Architecture kLlama = {
    .name = "llama", .transformers_class = "LlamaForCausalLM", .read = [](ConfigReader& reader) {
      const AttentionSpec attention = reader.attention(/*rope_interleaved=*/true);
      reader.uniform_layers(attention, Presence::kOptional, Norms::kPre);
    }};

}  // namespace foretoken
