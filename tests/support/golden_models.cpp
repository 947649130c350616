#include "tests/support/golden_models.h"

#include <cmath>

namespace foretoken::testing {
namespace {

// Small, with heads that are no equal share of the hidden width (n_heads * head_dim = 128).
TinyModelOptions small(const char* architecture, std::function<void(GgufWriter&)> first = {}) {
  TinyModelOptions o;
  o.architecture = architecture;
  o.seed = 5;
  o.n_layers = 2;
  o.hidden = 64;
  o.head_dim = 32;
  o.ffn = 96;
  o.n_vocab = 264;
  o.context_length = 256;
  o.first = std::move(first);
  return o;
}

TinyModelOptions tied(TinyModelOptions o) {
  o.tied = true;
  return o;
}
TinyModelOptions hidden(TinyModelOptions o, int width) {
  o.hidden = width;
  return o;
}

void yarn(GgufWriter& w, const std::string& prefix) {
  w.add_string(prefix + "rope.scaling.type", "yarn");
  w.add_float32(prefix + "rope.scaling.factor", 4.0f);
  w.add_uint32(prefix + "rope.scaling.original_context_length", 32);
}

std::vector<float> rising(int n, float first, float last) {
  std::vector<float> out;
  for (int i = 0; i < n; ++i)
    out.push_back(first * std::pow(last / first, float(i) / float(n - 1)));
  return out;
}

const std::vector<GoldenModel>& all() {
  static const std::vector<GoldenModel> models = {
      {"llama", small("llama")},
      {"llama_factors",
       small("llama",  // Llama 3.1 to 3.3: the converter writes factors
             [](GgufWriter& w) { w.add_tensor("rope_freqs.weight", {16}, rising(16, 1, 8)); })},
      {"llama_linear", small("llama",
                             [](GgufWriter& w) {
                               w.add_string("llama.rope.scaling.type", "linear");
                               w.add_float32("llama.rope.scaling.factor", 2.5f);
                             })},
      {"llama_linear_untyped",
       small("llama", [](GgufWriter& w) { w.add_float32("llama.rope.scale_linear", 2.5f); })},
      {"llama_yarn", small("llama", [](GgufWriter& w) { yarn(w, "llama."); })},
      {"llama_longrope", small("llama",
                               [](GgufWriter& w) {
                                 w.add_string("llama.rope.scaling.type", "longrope");
                                 w.add_uint32("llama.rope.scaling.original_context_length", 32);
                                 w.add_float32("llama.rope.scaling.attn_factor", 1.19f);
                                 w.add_tensor("rope_factors_long.weight", {16}, rising(16, 1, 20));
                                 w.add_tensor("rope_factors_short.weight", {16}, rising(16, 1, 2));
                               })},
      {"olmo2", hidden(small("olmo2"), 128)},  // its heads share the hidden width
      {"qwen2", hidden(small("qwen2"), 128)},
      {"qwen3", small("qwen3")},
      {"qwen3_tied", tied(small("qwen3"))},
      {"qwen3_yarn", small("qwen3", [](GgufWriter& w) { yarn(w, "qwen3."); })},
  };
  return models;
}

}  // namespace

std::span<const GoldenModel> golden_models() { return all(); }

std::vector<TokenId> golden_tokens() {
  std::vector<TokenId> tokens;
  for (int i = 0; i < 96; ++i) tokens.push_back((i * 31 + i * i) % 256);
  return tokens;
}

}  // namespace foretoken::testing
