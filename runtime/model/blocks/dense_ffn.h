// The gated feed-forward part: down(gate_kind(gate x) * up x).
#pragma once

#include <string>

#include "runtime/model/blocks/pass.h"
#include "runtime/model/tensor_loader.h"

namespace foretoken {

class DenseFfnBlock {
 public:
  Status load(TensorLoader& loader, const std::string& prefix, const DenseFfnSpec& spec,
              std::int64_t hidden);
  // x: [n_rows, hidden] -> branch. next: what is read after it.
  void run(const float* x, Pass& pass, const Upcoming& next) const;
  Upcoming first() const { return {&gate_.weight.packed, &up_.weight.packed, &kNoMatrix}; }
  template <class F>
  void each_matrix(F&& fn) const {
    for (const Linear* m : {&gate_, &up_, &down_}) fn(m->weight);
  }

 private:
  DenseFfnSpec spec_;
  Linear gate_, up_, down_;
};

}  // namespace foretoken
