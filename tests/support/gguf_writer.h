// Writes small GGUF v3 files for tests: metadata, then F32 tensors. Little-endian.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

namespace foretoken::testing {

// Of a key or tensor that is added twice the first stands.
class GgufWriter {
 public:
  void add_string(const std::string& key, const std::string& value);
  void add_uint32(const std::string& key, std::uint32_t value);
  void add_float32(const std::string& key, float value);
  void add_bool(const std::string& key, bool value);
  void add_strings(const std::string& key, const std::vector<std::string>& values);
  void add_int32s(const std::string& key, const std::vector<std::int32_t>& values);
  // ggml order: shape[0] is the contiguous dimension. ggml type 0 (F32).
  void add_tensor(const std::string& name, const std::vector<std::int64_t>& shape,
                  const std::vector<float>& values);
  // Already encoded rows of another ggml type.
  void add_raw_tensor(const std::string& name, const std::vector<std::int64_t>& shape,
                      std::uint32_t ggml_type, std::vector<std::uint8_t> bytes);
  std::vector<std::uint8_t> bytes() const;
  void write(const std::string& path) const;

 private:
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    std::uint32_t type;
    std::vector<std::uint8_t> bytes;
  };
  bool key(const std::string& name, std::uint32_t type);  // false: it is there
  std::vector<std::uint8_t> metadata_;
  std::uint64_t n_metadata_ = 0;
  std::vector<Tensor> tensors_;
  std::set<std::string> names_;
};

struct TinyModelOptions {
  std::uint64_t seed = 1;
  int n_layers = 3, n_heads = 4, n_kv_heads = 2, head_dim = 64, hidden = 128, ffn = 256,
      n_vocab = 320;
  int context_length = 2048;
  float logit_scale = 4.0f;            // how peaked its distributions are
  std::string architecture = "llama";  // any of runtime/model/arch; its tensors follow from it
  bool tied = false;                   // no output matrix of its own
  // Called first: keys and tensors that it adds stand instead of the usual ones.
  std::function<void(GgufWriter&)> first = {};
  // Of the matrices (0: F32). A quantised type takes random blocks, scaled to the wanted size.
  std::uint32_t ggml_type = 0;
};
// A random-weight model with a byte-level vocabulary: every code path of a real one, in
// milliseconds.
void write_tiny_model(const std::string& path, const TinyModelOptions& options);

// A fresh directory under the system's temporary folder, removed with everything in it at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace foretoken::testing
