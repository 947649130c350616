// Loads a model's tensors one by one from a GGUF file: matrices repacked into the kernels' layout,
// vectors as floats, the file's pages released as they are consumed. Remembers which tensors
// somebody asked for: one that nobody reads would change what the model computes, and is an error.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "foretoken/kernels/linear.h"
#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/result.h"
#include "runtime/files/gguf.h"
#include "runtime/model/layer_spec.h"
#include "runtime/model/weights.h"

namespace foretoken {

// A matrix with its bias (empty: none).
struct Linear {
  Matrix weight;
  std::vector<float> bias;  // [n_out]
  const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

class TensorLoader {
 public:
  // `progress` may be empty; called with 0..1.
  TensorLoader(const GgufFile& file, kernels::ThreadPool& pool,
               const std::function<void(double)>& progress);

  // `name` as in the file, ".weight" included.
  Status vector(const std::string& name, std::int64_t n, Presence presence,
                std::vector<float>& out);
  Status matrix(const std::string& name, std::int64_t n_out, std::int64_t n_in, Matrix& out);
  // name.weight and, where the file has it, name.bias.
  Status linear(const std::string& name, std::int64_t n_out, std::int64_t n_in, Presence bias,
                Linear& out);
  // A matrix that stays in the file: rows are read there.
  Result<const GgufTensor*> rows(const std::string& name, std::int64_t n_rows, std::int64_t width,
                                 kernels::WeightType& type);
  void claim(const std::string& name) { claimed_.insert(name); }
  // That all tensors of the file were asked for, those that begin with one of `unused` aside.
  Status finish(const std::vector<std::string>& unused) const;

 private:
  Result<const GgufTensor*> find(const std::string& name, std::vector<std::int64_t> shape);
  Result<kernels::WeightType> type_of(const GgufTensor& tensor) const;
  Error bad(ErrorCode code, const std::string& message) const;
  void consumed(const GgufTensor& tensor);

  const GgufFile& file_;
  kernels::ThreadPool& pool_;
  const std::function<void(double)>& progress_;
  WeightArena arena_;
  std::size_t total_ = 0, done_ = 0;
  std::set<std::string> claimed_;
};

}  // namespace foretoken
