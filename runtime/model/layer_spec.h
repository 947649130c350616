// What one layer of a model is, as its architecture (arch/NAME.cpp) describes it: a mixer of
// positions, a feed-forward part and where norms stand. Plain values, made once at load; the blocks
// (blocks/) are built from them, and calibration, memory and taps ask them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

namespace foretoken {

enum class Presence { kNone, kOptional, kRequired };  // of a tensor in the file
enum class QkNorm { kNone, kPerHead, kWholeWidth };   // RMS norm of q and k, before rotation

inline constexpr int kNoRope = -1;

struct AttentionSpec {
  int n_heads = 0, n_kv_heads = 0, head_dim = 0;  // K and V of one width
  float scale = 0;                                // of q * k
  int rope = 0;                                   // one of ModelConfig::ropes, or kNoRope
  Presence qkv_bias = Presence::kOptional, output_bias = Presence::kOptional;
  QkNorm qk_norm = QkNorm::kNone;
  std::int64_t window = 0;  // positions seen, the row's own among them; 0: all
  bool sinks = false;       // one more logit a head in the softmax's denominator
  float soft_cap = 0;       // c: scores become c * tanh(score / c); 0: none
};

// A state of fixed size instead of keys and values (gated delta net, Mamba-2, short convolution).
struct RecurrentSpec {
  std::int64_t state_values = 0;  // a sequence
  int input_rows = 0;             // of the last positions, for the convolution
};

enum class Gate { kSilu };  // of the gated feed-forward part

struct DenseFfnSpec {
  std::int64_t width = 0;
  Gate gate = Gate::kSilu;
  Presence bias = Presence::kNone;
};

struct RoutedFfnSpec {  // a mixture of experts
  int n_experts = 0, n_used = 0;
};

enum class Norms { kPre, kPost, kBoth };  // before a branch reads x, before x takes it, both

struct LayerSpec {
  std::variant<AttentionSpec, RecurrentSpec> mixer;
  std::variant<DenseFfnSpec, RoutedFfnSpec> ffn;
  Norms norms = Norms::kPre;
};

// What no block runs yet, named ("a sliding window of 128 positions"); nullopt: all of it runs.
// An architecture describes what a model is; this alone says what of it can be served.
std::optional<std::string> unsupported(const LayerSpec& layer);

}  // namespace foretoken
