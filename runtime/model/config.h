// What a model is: the values of its file's metadata, checked, and its layers one by one as its
// architecture describes them (arch/). Immutable after read_model_config.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "foretoken/protocol/result.h"
#include "runtime/files/gguf.h"
#include "runtime/model/layer_spec.h"
#include "runtime/model/rope_scaling.h"

namespace foretoken {

struct ModelConfig {
  std::string architecture;  // a row of arch/registry.cpp
  std::string name;
  int n_layers = 0;
  std::int64_t hidden = 0, n_vocab = 0, context_length = 0;
  float rms_epsilon = 1e-5f;
  bool tied_output = false;
  std::vector<Rope> ropes;                // AttentionSpec::rope is a place in it
  std::vector<LayerSpec> layers;          // [n_layers]
  std::vector<std::string> read_tensors;  // of the file, whose values are in this already

  // Of a layer with attention.
  const AttentionSpec& attention(int layer) const {
    return std::get<AttentionSpec>(layers[std::size_t(layer)].mixer);
  }
  // Null: its layer rotates nothing.
  const Rope* rope_of(const AttentionSpec& attention) const {
    return attention.rope == kNoRope ? nullptr : &ropes[std::size_t(attention.rope)];
  }
};

// An unknown architecture, a missing or absurd value, one of another kind than wanted, and one that
// changes the arithmetic and is not understood: each an error that names the key, what was found
// and what was wanted.
Result<ModelConfig> read_model_config(const GgufFile& file);

}  // namespace foretoken
