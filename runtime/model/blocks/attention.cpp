#include "runtime/model/blocks/attention.h"

#include "foretoken/kernels/elementwise.h"

namespace foretoken {

Status AttentionBlock::load(TensorLoader& loader, const std::string& prefix,
                            const AttentionSpec& spec, int kv_layer, std::int64_t hidden) {
  spec_ = spec;
  kv_layer_ = kv_layer;
  q_width_ = std::int64_t(spec.n_heads) * spec.head_dim;
  kv_width_ = std::int64_t(spec.n_kv_heads) * spec.head_dim;
  const Presence bias = spec.qkv_bias;
  if (auto s = loader.linear(prefix + "attn_q", q_width_, hidden, bias, q_); !s) return s;
  if (auto s = loader.linear(prefix + "attn_k", kv_width_, hidden, bias, k_); !s) return s;
  if (auto s = loader.linear(prefix + "attn_v", kv_width_, hidden, bias, v_); !s) return s;
  if (auto s = loader.linear(prefix + "attn_output", hidden, q_width_, spec.output_bias, output_);
      !s)
    return s;
  if (spec.qk_norm == QkNorm::kNone) return Ok{};
  const bool whole = spec.qk_norm == QkNorm::kWholeWidth;
  if (auto s = loader.vector(prefix + "attn_q_norm.weight", whole ? q_width_ : spec.head_dim,
                             Presence::kRequired, q_norm_);
      !s)
    return s;
  return loader.vector(prefix + "attn_k_norm.weight", whole ? kv_width_ : spec.head_dim,
                       Presence::kRequired, k_norm_);
}

void AttentionBlock::shape(Pass& pass) const {
  Workspace& ws = pass.ws;
  const int d = spec_.head_dim;
  // x: [width] of one row.
  const auto norm = [&](float* x, std::int64_t width, const std::vector<float>& weight) {
    const auto n = std::int64_t(weight.size());
    kernels::rms_norm(x, n, weight.data(), pass.config.rms_epsilon, width / n, n, x, n);
  };
  const Rope* rope = pass.config.rope_of(spec_);
  pass.for_rows([&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      float *q = &ws.q[std::size_t(r * q_width_)], *k = &ws.k[std::size_t(r * kv_width_)];
      if (spec_.qk_norm != QkNorm::kNone) {
        norm(q, q_width_, q_norm_);
        norm(k, kv_width_, k_norm_);
      }
      if (!rope) continue;
      const float* cos_sin = &ws.cos_sin[std::size_t(spec_.rope)][std::size_t(r * rope->dim)];
      kernels::rope(q, spec_.n_heads, d, rope->dim, cos_sin, rope->interleaved);
      kernels::rope(k, spec_.n_kv_heads, d, rope->dim, cos_sin, rope->interleaved);
    }
  });
}

void AttentionBlock::run(const float* x, Pass& pass, const Upcoming& next) const {
  Workspace& ws = pass.ws;
  pass.set_activations(x, pass.hidden, first());
  const kernels::LinearJob qkv[] = {{&q_.weight.packed, q_.bias_or_null(), ws.q.data(), q_width_},
                                    {&k_.weight.packed, k_.bias_or_null(), ws.k.data(), kv_width_},
                                    {&v_.weight.packed, v_.bias_or_null(), ws.v.data(), kv_width_}};
  kernels::linear_many(qkv, 3, ws.activations, pass.pool, {&output_.weight.packed});
  shape(pass);
  if (KvObserver* observer = pass.batch.observer)
    observer->observe(kv_layer_, int(pass.n_rows), ws.q.data(), ws.k.data(), ws.v.data());
  pass.kv.store(kv_layer_, pass.batch.sequences, ws.k.data(), kv_width_, ws.v.data(), kv_width_);
  pass.kv.attend(kv_layer_, pass.batch.sequences, ws.q.data(), q_width_, ws.attended.data(),
                 q_width_, spec_.scale, pass.pool);
  pass.set_activations(ws.attended.data(), q_width_,
                       {&output_.weight.packed, &kNoMatrix, &kNoMatrix});
  kernels::linear(output_.weight.packed, ws.activations, output_.bias_or_null(), ws.branch.data(),
                  pass.hidden, pass.pool, {next[0], next[1], next[2]});
}

}  // namespace foretoken
