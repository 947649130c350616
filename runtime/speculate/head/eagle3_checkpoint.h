// EAGLE-3 heads as they are published (Li et al., arXiv 2503.01840): a folder with config.json and
// model.safetensors, in either of two formats:
//   eagle3       "architectures": ["LlamaForCausalLMEagle3"] (SafeAILab, SpecForge, SGLang, vLLM);
//                tensors midlayer.*
//   speculators  "speculators_model_type": "eagle3" (vLLM's); tensors layers.0.*
// Other software skips a key that it does not know and serves what it did not load as it happened
// to be initialised. Here every tensor must be there, known, and of the shape and type that the
// configuration says; errors begin with the reason: "config: ", "missing: ", "extra: ", "shape: ",
// "dtype: ", "vocabulary: ", "non-finite: ". Settings of a transformer layer that would change its
// arithmetic and are not ours (biases, other activations, more layers) are refused by name.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/protocol/failure.h"
#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "runtime/files/safetensors.h"

namespace foretoken {

enum class Eagle3Format { kEagle3, kSpeculators };
const char* eagle3_format_name(Eagle3Format format);  // "eagle3", "speculators"

inline constexpr Refusal bad_eagle3{"eagle3"};

inline constexpr int kEagle3Taps = 3;

struct Eagle3Config {
  Eagle3Format format = Eagle3Format::kEagle3;
  std::int64_t hidden = 0, ffn = 0;
  std::int64_t target_hidden = 0;               // width of a tap
  std::int64_t n_vocab = 0, n_draft_vocab = 0;  // the target's, the head's
  int n_heads = 0, n_kv_heads = 0, head_dim = 0;
  std::int64_t max_positions = 2048;
  float rope_theta = 10000, rms_epsilon = 1e-6f;
  std::vector<float> rope_factors;  // frequencies are divided by these: [head_dim / 2] or empty
  std::string rope_scaling;         // as JSON, "null" for none
  // What came after the paper: the residual is the normed feature; one norm over the joined taps,
  // or one a tap, before fc; the next step reads the normed output.
  bool norm_before_residual = false, norm_before_fc = false, fc_norm = false, norm_output = false;
  // Which hidden states of the target are read, as the file says it; none: the default.
  std::optional<std::array<int, kEagle3Taps>> layer_ids;

  // The blocks of a target of n_layers whose outputs are the taps. Ids are of a layer's input,
  // which is the output of the block before; [2, n/2, n-3] by default. In the eagle3 format a list
  // that begins with 1 is of outputs (sglang#25454). Errors: "config: ...".
  Result<std::array<int, kEagle3Taps>> taps(int n_layers) const;
};

struct Eagle3Tensor {
  SafetensorType type = SafetensorType::kBF16;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
  bool operator==(const Eagle3Tensor&) const = default;
};

// What the files hold, byte by byte: read and written again it is the same.
struct Eagle3Checkpoint {
  std::string config;                           // config.json
  std::map<std::string, Eagle3Tensor> tensors;  // by the file's names
  bool operator==(const Eagle3Checkpoint&) const = default;
};

// A checkpoint that was found good. Pointers are into it; null: the checkpoint has none.
struct Eagle3Parts {
  Eagle3Config config;
  const Eagle3Tensor* fc = nullptr;                        // [H, 3 target_hidden]
  const Eagle3Tensor* input_norm = nullptr;                // [3 target_hidden], with norm_before_fc
  std::array<const Eagle3Tensor*, kEagle3Taps> fc_norm{};  // [target_hidden] each, with fc_norm
  const Eagle3Tensor* embedding = nullptr;                 // [n_vocab, H]; null: the target's
  const Eagle3Tensor *input_layernorm = nullptr, *hidden_norm = nullptr,
                     *post_attention_layernorm = nullptr, *norm = nullptr;  // [H]
  const Eagle3Tensor *q = nullptr, *k = nullptr, *v = nullptr;         // [heads * head_dim, 2H]
  const Eagle3Tensor* o = nullptr;                                     // [H, n_heads * head_dim]
  const Eagle3Tensor *gate = nullptr, *up = nullptr, *down = nullptr;  // [ffn, H], .., [H, ffn]
  const Eagle3Tensor* lm_head = nullptr;                               // [n_draft_vocab, H]
  std::vector<TokenId> vocab;  // [n_draft_vocab]: the target's id of a draft id, i + d2t[i]
};

Result<Eagle3Config> parse_eagle3_config(const std::string& json);
Result<Eagle3Parts> eagle3_parts(const Eagle3Checkpoint& checkpoint);

// Whether a folder claims to hold such a head: it has a config.json that says so.
bool is_eagle3_folder(const std::filesystem::path& folder);
// Messages begin with the reason and name the folder. The checkpoint is as eagle3_parts() wants it.
Result<Eagle3Checkpoint> read_eagle3(const std::filesystem::path& folder);
// Writes config.json and model.safetensors; the folder is made, files in it are replaced.
Status write_eagle3(const Eagle3Checkpoint& checkpoint, const std::filesystem::path& folder);

// The same head in the other format (or the same: unchanged). n_layers: of the target, so that the
// taps are named; verifier: what the speculators format says of it.
struct Eagle3Verifier {
  std::string name, architecture;  // "org/model", "LlamaForCausalLM"
  int n_layers = 0;
};
Result<Eagle3Checkpoint> converted(const Eagle3Checkpoint& checkpoint, Eagle3Format to,
                                   const Eagle3Verifier& verifier);
// config.json of a head in that format, for one that was trained here.
Result<std::string> eagle3_config_json(const Eagle3Config& config, Eagle3Format format,
                                       const Eagle3Verifier& verifier);

}  // namespace foretoken
