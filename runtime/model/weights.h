// The packed weights of one model: loaded tensor by tensor from a GGUF file, repacked into the
// kernels' layout, the file's pages released as they are consumed. Immutable after load.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "foretoken/kernels/linear.h"
#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/result.h"
#include "runtime/model/gguf.h"
#include "runtime/model/model.h"

namespace foretoken {

// 64-byte aligned anonymous memory, on huge pages where the system grants them.
class WeightBuffer {
 public:
  WeightBuffer() = default;
  explicit WeightBuffer(std::size_t bytes);  // data() is null if the system has no memory
  std::byte* data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  friend class WeightArena;
  std::shared_ptr<std::byte> data_;  // keeps the mapping that it lies in
  std::size_t bytes_ = 0;
};

// One mapping for all the matrices of a model: only whole, aligned 2 MiB of a mapping become huge
// pages, and a matrix that is streamed from small ones is read slower.
class WeightArena {
 public:
  explicit WeightArena(std::size_t bytes);  // of address space: what is not taken costs no memory
  // What no longer fits has a mapping of its own.
  WeightBuffer take(std::size_t bytes);

 private:
  WeightBuffer whole_;
  std::size_t taken_ = 0;
};

struct Matrix {
  kernels::PackedMatrix packed;  // a view of `buffer`
  WeightBuffer buffer;
  std::size_t file_bytes = 0;
};

struct LayerWeights {
  std::vector<float> attention_norm, ffn_norm;  // [hidden]
  Matrix q, k, v, attention_output, gate, up, down;
  std::vector<float> q_bias, k_bias, v_bias, attention_output_bias;  // [n_out] or empty
};

struct ModelWeights {
  const GgufTensor* embedding_tensor = nullptr;  // untied: rows are read from the mapped file
  kernels::WeightType embedding_type = kernels::WeightType::kF32;
  Matrix output;                              // [n_vocab, hidden]; the embedding itself when tied
  std::vector<float> output_norm;             // [hidden]
  std::vector<float> rope_frequency_factors;  // [rotary_dim / 2] or empty
  std::vector<LayerWeights> layers;
};

// The kernels' type of a ggml tensor type; nullopt: none reads it.
std::optional<kernels::WeightType> weight_type_of(std::uint32_t ggml_type);

// Reads and checks the configuration: an unknown architecture or a missing or absurd field is an
// error that names the key, what was found and what was wanted.
Result<ModelConfig> read_model_config(const GgufFile& file);

Result<ModelWeights> load_weights(const GgufFile& file, const ModelConfig& config,
                                  kernels::ThreadPool& pool,
                                  const std::function<void(double)>& progress);

}  // namespace foretoken
