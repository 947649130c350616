#include "runtime/model/blocks/pass.h"

#include <algorithm>

#include "foretoken/kernels/elementwise.h"

namespace foretoken {
namespace {

struct Widths {  // of the widest layer
  std::int64_t q = 0, kv = 0, ffn = 0;
};

Widths widest(const ModelConfig& config) {
  Widths w;
  for (const LayerSpec& layer : config.layers) {
    if (const auto* a = std::get_if<AttentionSpec>(&layer.mixer)) {
      w.q = std::max(w.q, std::int64_t(a->n_heads) * a->head_dim);
      w.kv = std::max(w.kv, std::int64_t(a->n_kv_heads) * a->head_dim);
    }
    if (const auto* f = std::get_if<DenseFfnSpec>(&layer.ffn)) w.ffn = std::max(w.ffn, f->width);
  }
  return w;
}

}  // namespace

Workspace::Workspace(const ModelConfig& c, int max_rows, int max_logit_rows)
    : activations(std::max(max_rows, max_logit_rows),
                  std::max({c.hidden, widest(c).ffn, widest(c).q})) {
  const auto rows = std::size_t(max_rows), hidden = std::size_t(c.hidden);
  const Widths w = widest(c);
  x.resize(rows * hidden);
  normed.resize(std::size_t(std::max(max_rows, max_logit_rows)) * hidden);
  q.resize(rows * std::size_t(w.q));
  k.resize(rows * std::size_t(w.kv));
  v.resize(rows * std::size_t(w.kv));
  attended.resize(rows * std::size_t(w.q));
  gate.resize(rows * std::size_t(w.ffn));
  up.resize(rows * std::size_t(w.ffn));
  branch.resize(rows * hidden);
  for (const Rope& rope : c.ropes) cos_sin.emplace_back(rows * std::size_t(rope.dim));
}

void Pass::norm(const float* from, const std::vector<float>& weight, float* to) {
  for_rows([&](std::int64_t begin, std::int64_t end) {
    kernels::rms_norm(from + begin * hidden, hidden, weight.data(), config.rms_epsilon, end - begin,
                      hidden, to + begin * hidden, hidden);
  });
}

void Pass::set_activations(const float* x, std::int64_t width, Upcoming users) {
  bool block32 = false, block256 = false;
  for (const kernels::PackedMatrix* m : users) {
    block32 |= kernels::wants_block32(m->type);
    block256 |= kernels::wants_block256(m->type);
  }
  ws.activations.set(x, n_rows, width, width, block32, block256, pool);
}

void Pass::add_branch() {
  for_rows([&](std::int64_t begin, std::int64_t end) {
    kernels::add(&ws.branch[std::size_t(begin * hidden)], (end - begin) * hidden,
                 &ws.x[std::size_t(begin * hidden)]);
  });
}

}  // namespace foretoken
