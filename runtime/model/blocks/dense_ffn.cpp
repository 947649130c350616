#include "runtime/model/blocks/dense_ffn.h"

#include "foretoken/kernels/elementwise.h"

namespace foretoken {

Status DenseFfnBlock::load(TensorLoader& loader, const std::string& prefix,
                           const DenseFfnSpec& spec, std::int64_t hidden) {
  width_ = spec.width;
  if (auto s = loader.linear(prefix + "ffn_gate", width_, hidden, spec.bias, gate_); !s) return s;
  if (auto s = loader.linear(prefix + "ffn_up", width_, hidden, spec.bias, up_); !s) return s;
  return loader.linear(prefix + "ffn_down", hidden, width_, spec.bias, down_);
}

void DenseFfnBlock::run(const float* x, Pass& pass, const Upcoming& next) const {
  Workspace& ws = pass.ws;
  pass.set_activations(x, pass.hidden, first());
  const kernels::LinearJob gate_up[] = {
      {&gate_.weight.packed, gate_.bias_or_null(), ws.gate.data(), width_},
      {&up_.weight.packed, up_.bias_or_null(), ws.up.data(), width_}};
  kernels::linear_many(gate_up, 2, ws.activations, pass.pool, {&down_.weight.packed});
  pass.for_rows([&](std::int64_t begin, std::int64_t end) {
    float* gate = &ws.gate[std::size_t(begin * width_)];
    kernels::swiglu(gate, &ws.up[std::size_t(begin * width_)], (end - begin) * width_, gate);
  });
  pass.set_activations(ws.gate.data(), width_, {&down_.weight.packed, &kNoMatrix, &kNoMatrix});
  kernels::linear(down_.weight.packed, ws.activations, down_.bias_or_null(), ws.branch.data(),
                  pass.hidden, pass.pool, {next[0], next[1], next[2]});
}

}  // namespace foretoken
