#include "runtime/model/blocks/dense_ffn.h"

#include "foretoken/kernels/elementwise.h"

namespace foretoken {

Status DenseFfnBlock::load(TensorLoader& loader, const std::string& prefix,
                           const DenseFfnSpec& spec, std::int64_t hidden) {
  spec_ = spec;
  const std::int64_t width = spec.width;
  if (auto s = loader.linear(prefix + "ffn_gate", width, hidden, spec.bias, gate_); !s) return s;
  if (auto s = loader.linear(prefix + "ffn_up", width, hidden, spec.bias, up_); !s) return s;
  return loader.linear(prefix + "ffn_down", hidden, width, spec.bias, down_);
}

void DenseFfnBlock::run(const float* x, Pass& pass, const Upcoming& next) const {
  Workspace& ws = pass.ws;
  const std::int64_t width = spec_.width;
  pass.set_activations(x, pass.hidden, first());
  const kernels::LinearJob gate_up[] = {
      {&gate_.weight.packed, gate_.bias_or_null(), ws.gate.data(), width},
      {&up_.weight.packed, up_.bias_or_null(), ws.up.data(), width}};
  kernels::linear_many(gate_up, 2, ws.activations, pass.pool, {&down_.weight.packed});
  pass.for_rows([&](std::int64_t begin, std::int64_t end) {
    float* gate = &ws.gate[std::size_t(begin * width)];
    const float* up = &ws.up[std::size_t(begin * width)];
    switch (spec_.gate) {
      case Gate::kSilu:
        kernels::swiglu(gate, up, (end - begin) * width, gate);
    }
  });
  pass.set_activations(ws.gate.data(), width, {&down_.weight.packed, &kNoMatrix, &kNoMatrix});
  kernels::linear(down_.weight.packed, ws.activations, down_.bias_or_null(), ws.branch.data(),
                  pass.hidden, pass.pool, {next[0], next[1], next[2]});
}

}  // namespace foretoken
