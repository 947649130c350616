#include "trainer/head/eagle3_twin.h"

#include <cmath>
#include <cstring>

namespace foretoken::trainer {
namespace {

torch::ScalarType scalar_type(SafetensorType type) {
  return type == SafetensorType::kF32   ? torch::kFloat32
         : type == SafetensorType::kF16 ? torch::kFloat16
                                        : torch::kBFloat16;
}

torch::Tensor tensor_of(const Eagle3Tensor* from) {
  if (!from) return {};
  const auto stored = torch::from_blob(const_cast<std::byte*>(from->bytes.data()), from->shape,
                                       scalar_type(from->type));
  return stored.to(torch::kFloat32).clone();
}

torch::Tensor rms(const torch::Tensor& x, float epsilon) {
  return x * x.square().mean(-1, true).add(epsilon).rsqrt();
}

// x: [rows, heads, dim], rotated by halves; angles: [rows, dim / 2].
torch::Tensor rotated(const torch::Tensor& x, const torch::Tensor& angles) {
  const auto cos = angles.cos().unsqueeze(1), sin = angles.sin().unsqueeze(1);
  const std::int64_t half = x.size(2) / 2;
  const auto a = x.narrow(2, 0, half), b = x.narrow(2, half, half);
  return torch::cat({a * cos - b * sin, b * cos + a * sin}, 2);
}

// What learns, fc_norm aside: by its name, here, and in the checkpoint.
struct Learned {
  const char* name;
  torch::Tensor Eagle3Parameters::*tensor;
  const Eagle3Tensor* Eagle3Parts::*part;
};
using P = Eagle3Parameters;
using C = Eagle3Parts;
constexpr Learned kLearned[] = {
    {"fc.weight", &P::fc, &C::fc},
    {"midlayer.input_layernorm.weight", &P::input_layernorm, &C::input_layernorm},
    {"midlayer.hidden_norm.weight", &P::hidden_norm, &C::hidden_norm},
    {"midlayer.self_attn.q_proj.weight", &P::q, &C::q},
    {"midlayer.self_attn.k_proj.weight", &P::k, &C::k},
    {"midlayer.self_attn.v_proj.weight", &P::v, &C::v},
    {"midlayer.self_attn.o_proj.weight", &P::o, &C::o},
    {"midlayer.post_attention_layernorm.weight", &P::post_attention_layernorm,
     &C::post_attention_layernorm},
    {"midlayer.mlp.gate_proj.weight", &P::gate, &C::gate},
    {"midlayer.mlp.up_proj.weight", &P::up, &C::up},
    {"midlayer.mlp.down_proj.weight", &P::down, &C::down},
    {"norm.weight", &P::norm, &C::norm},
    {"lm_head.weight", &P::lm_head, &C::lm_head},
    {"input_norm.weight", &P::input_norm, &C::input_norm},
};

}  // namespace

Result<Eagle3Parameters> Eagle3Parameters::of(const Eagle3Checkpoint& checkpoint) {
  auto parts = eagle3_parts(checkpoint);
  if (!parts) return parts.error();
  Eagle3Parameters head;
  head.config = parts->config;
  head.vocab = parts->vocab;
  for (const Learned& l : kLearned) head.*l.tensor = tensor_of((*parts).*l.part);
  if (parts->fc_norm[0]) {
    head.fc_norm = torch::stack(
        {tensor_of(parts->fc_norm[0]), tensor_of(parts->fc_norm[1]), tensor_of(parts->fc_norm[2])});
  }
  head.embedding = tensor_of(parts->embedding);
  return head;
}

std::vector<std::pair<std::string, torch::Tensor>> Eagle3Parameters::named() const {
  std::vector<std::pair<std::string, torch::Tensor>> out;
  for (const Learned& l : kLearned)
    if ((this->*l.tensor).defined()) out.emplace_back(l.name, this->*l.tensor);
  for (std::int64_t i = 0; fc_norm.defined() && i < kEagle3Taps; ++i)
    out.emplace_back("fc_norm." + std::to_string(i) + ".weight", fc_norm[i]);
  return out;
}

Eagle3Checkpoint Eagle3Parameters::rounded_into(Eagle3Checkpoint like) const {
  for (const auto& [name, values] : named()) {
    auto found = like.tensors.find(name);
    if (found == like.tensors.end())
      found = like.tensors.find("layers.0." + name.substr(name.find('.') + 1));
    Eagle3Tensor& to = found->second;
    const auto rounded = values.detach().to(scalar_type(to.type)).contiguous();
    std::memcpy(to.bytes.data(), rounded.data_ptr(), to.bytes.size());
  }
  return like;
}

torch::Tensor run_eagle3(const Eagle3Parameters& head, const Eagle3Segment& segment, int n_steps,
                         std::int64_t window) {
  const Eagle3Config& c = head.config;
  const std::int64_t rows = segment.taps.size(0), n = segment.n_chains, start = rows - n,
                     dim = c.head_dim, group = c.n_heads / c.n_kv_heads;
  const auto normed = [&](const torch::Tensor& x, const torch::Tensor& weight) {
    return rms(x, c.rms_epsilon) * weight;
  };
  // In double: as the served head's angles.
  auto frequency = torch::pow(double(c.rope_theta),
                              torch::arange(0, dim, 2, torch::kFloat64) * (-1.0 / double(dim)));
  if (!c.rope_factors.empty()) {
    frequency = frequency / torch::from_blob(const_cast<float*>(c.rope_factors.data()), {dim / 2},
                                             torch::kFloat32)
                                .to(torch::kFloat64);
  }
  const auto angles =
      (torch::arange(segment.first, segment.first + rows + n_steps - 1, torch::kFloat64)
           .unsqueeze(1) *
       frequency)
          .to(torch::kFloat32);
  const auto e = normed(segment.embedded, head.input_layernorm);
  const auto heads = [&](const torch::Tensor& z, const torch::Tensor& w, std::int64_t first_row) {
    const auto y = torch::mm(z, w.t());
    return rotated(y.view({z.size(0), y.size(1) / dim, dim}),
                   angles.narrow(0, first_row, z.size(0)));
  };
  const auto values = [&](const torch::Tensor& z) {
    return torch::mm(z, head.v.t()).view({z.size(0), c.n_kv_heads, dim});
  };
  // Every query head's own copy: [rows, n_heads, dim].
  const auto shared = [&](const torch::Tensor& x) { return x.repeat_interleave(group, 1); };

  auto x = segment.taps;
  if (head.input_norm.defined()) x = normed(x, head.input_norm);
  if (head.fc_norm.defined()) {
    x = (rms(x.view({rows, kEagle3Taps, c.target_hidden}), c.rms_epsilon) * head.fc_norm)
            .view({rows, kEagle3Taps * c.target_hidden});
  }
  const auto fused = torch::mm(x, head.fc.t());
  const auto z_all = torch::cat({e.narrow(0, 0, rows), normed(fused, head.hidden_norm)}, 1);
  const auto k_all = shared(heads(z_all, head.k, 0)), v_all = shared(values(z_all));

  const auto chain_row = torch::arange(start, rows).unsqueeze(1), row = torch::arange(rows);
  std::vector<torch::Tensor> own_k, own_v, states;
  auto h = fused.narrow(0, start, n);
  for (int s = 0; s < n_steps; ++s) {
    const auto hidden = normed(h, head.hidden_norm);
    const auto z = torch::cat({e.narrow(0, start + s, n), hidden}, 1);
    const auto q = heads(z, head.q, start + s);  // [n, heads, dim]
    if (s > 0) {
      own_k.push_back(shared(heads(z, head.k, start + s)));
      own_v.push_back(shared(values(z)));
    }
    // True rows up to the chain's first, and the rows that it drafted itself, in the window.
    auto scores = torch::einsum("nhd,rhd->nhr", {q, k_all});
    const auto seen = (row <= chain_row).logical_and(row > chain_row + s - window);
    scores = scores.masked_fill(seen.logical_not().unsqueeze(1), -INFINITY);
    std::vector<torch::Tensor> all = {scores};
    for (const torch::Tensor& k : own_k) all.push_back((q * k).sum(2, true));
    const auto weights = torch::softmax(torch::cat(all, 2) / std::sqrt(double(dim)), 2);
    auto attended = torch::einsum("nhr,rhd->nhd", {weights.narrow(2, 0, rows), v_all});
    for (std::size_t t = 0; t < own_v.size(); ++t)
      attended = attended + weights.narrow(2, rows + std::int64_t(t), 1) * own_v[t];
    if (c.norm_before_residual) h = hidden;
    h = h + torch::mm(attended.reshape({n, c.n_heads * dim}), head.o.t());
    const auto m = normed(h, head.post_attention_layernorm);
    const auto gate = torch::mm(m, head.gate.t());
    h = h + torch::mm(gate * torch::sigmoid(gate) * torch::mm(m, head.up.t()), head.down.t());
    const auto r = normed(h, head.norm);
    states.push_back(r);
    if (c.norm_output) h = r;
  }
  return torch::cat(states);
}

}  // namespace foretoken::trainer
