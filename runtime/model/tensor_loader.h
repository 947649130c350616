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
#include "foretoken/protocol/failure.h"
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
  // As the file has it, checked; what stays there is read there.
  struct Found {
    const GgufTensor* tensor;
    kernels::WeightType type;
  };
  Result<Found> find(const std::string& name, const std::vector<std::int64_t>& shape);
  void claim(const std::string& name) { claimed_.insert(name); }
  // That all tensors of the file were asked for, those that begin with one of `unused` aside.
  Status finish(const std::vector<std::string>& unused) const;

 private:
  Result<kernels::WeightType> type_of(const GgufTensor& tensor) const;
  template <class... Args>
  Error bad(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) const {
    return failure(code, "{}: {}", file_.path(), fmt::format(text, std::forward<Args>(args)...));
  }
  void consumed(const GgufTensor& tensor);

  const GgufFile& file_;
  kernels::ThreadPool& pool_;
  const std::function<void(double)>& progress_;
  WeightArena arena_;
  std::size_t total_ = 0, done_ = 0;
  std::set<std::string> claimed_;
};

}  // namespace foretoken
