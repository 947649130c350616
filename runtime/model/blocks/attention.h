// Grouped-query attention over the KV cache, as AttentionSpec describes it.
#pragma once

#include <string>

#include "runtime/model/blocks/pass.h"
#include "runtime/model/tensor_loader.h"

namespace foretoken {

class AttentionBlock {
 public:
  // prefix: "blk.3."; kv_layer: this layer's place among those with keys and values.
  Status load(TensorLoader& loader, const std::string& prefix, const AttentionSpec& spec,
              int kv_layer, std::int64_t hidden);
  // x: [n_rows, hidden] -> branch. next: what is read after it.
  void run(const float* x, Pass& pass, const Upcoming& next) const;
  Upcoming first() const { return {&q_.weight.packed, &k_.weight.packed, &v_.weight.packed}; }
  const Matrix& output() const { return output_.weight; }
  template <class F>
  void each_matrix(F&& fn) const {
    for (const Linear* m : {&q_, &k_, &v_, &output_}) fn(m->weight);
  }

 private:
  void shape(Pass& pass) const;  // norms of q and k, rotation

  AttentionSpec spec_;
  int kv_layer_ = 0;
  std::int64_t q_width_ = 0, kv_width_ = 0;
  Linear q_, k_, v_, output_;
  std::vector<float> q_norm_, k_norm_;  // [head_dim] or the whole width
};

}  // namespace foretoken
