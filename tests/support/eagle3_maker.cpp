#include "tests/support/eagle3_maker.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "foretoken/kernels/linear.h"

namespace foretoken::testing {
namespace {

// Nearest, ties to even; finite values well inside the range.
std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return std::uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

std::uint16_t to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint16_t sign = std::uint16_t((bits >> 16) & 0x8000u);
  const int exponent = int((bits >> 23) & 0xff) - 127;
  if (exponent < -14) return sign;  // subnormals are zero: good enough for a random weight
  const std::uint32_t mantissa = bits & 0x7fffffu;
  std::uint32_t half = std::uint32_t(exponent + 15) << 10 | mantissa >> 13;
  half += (mantissa >> 12) & 1u;
  return std::uint16_t(sign | half);
}

// d2t and t2d of a draft vocabulary: what eagle3_parts() reads back.
Eagle3Tensor d2t_of(const std::vector<TokenId>& vocab) {
  Eagle3Tensor out{SafetensorType::kI64, {std::int64_t(vocab.size())}, {}};
  out.bytes.resize(8 * vocab.size());
  for (std::size_t i = 0; i < vocab.size(); ++i) {
    const std::int64_t offset = std::int64_t(vocab[i]) - std::int64_t(i);
    std::memcpy(out.bytes.data() + 8 * i, &offset, 8);
  }
  return out;
}

Eagle3Tensor t2d_of(const std::vector<TokenId>& vocab, std::int64_t n_vocab) {
  Eagle3Tensor out{SafetensorType::kBool, {n_vocab}, std::vector<std::byte>(std::size_t(n_vocab))};
  for (const TokenId token : vocab) out.bytes[std::size_t(token)] = std::byte{1};
  return out;
}

}  // namespace

Eagle3Tensor encoded(SafetensorType type, std::vector<std::int64_t> shape,
                     const std::vector<float>& values) {
  Eagle3Tensor t{type, std::move(shape), {}};
  const std::size_t width = safetensor_element_bytes(type);
  t.bytes.resize(values.size() * width);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (type == SafetensorType::kF32) {
      std::memcpy(t.bytes.data() + i * width, &values[i], width);
    } else {
      const std::uint16_t bits =
          type == SafetensorType::kBF16 ? to_bf16(values[i]) : to_f16(values[i]);
      std::memcpy(t.bytes.data() + i * width, &bits, width);
    }
  }
  return t;
}

std::vector<float> decoded(const Eagle3Tensor& tensor) {
  const auto type = safetensor_weight_type(tensor.type).value();
  std::vector<float> out(tensor.bytes.size() / safetensor_element_bytes(tensor.type));
  kernels::dequantize_file_row(type, tensor.bytes.data(), std::int64_t(out.size()), out.data());
  return out;
}

RandomEagle3 tiny_eagle3() {
  RandomEagle3 r;
  Eagle3Config& c = r.config;
  c.hidden = c.target_hidden = 128;
  c.ffn = 192;
  c.n_heads = 2;
  c.n_kv_heads = 1;
  c.head_dim = 64;
  c.n_vocab = 320;
  c.n_draft_vocab = 96;
  c.rope_scaling = "null";
  c.layer_ids = {{1, 2, 3}};
  c.format = r.format;  // in which these ids are of inputs
  return r;
}

Eagle3Checkpoint random_eagle3(const RandomEagle3& o) {
  const Eagle3Config& c = o.config;
  std::mt19937_64 random(o.seed);
  std::normal_distribution<float> normal;
  Eagle3Checkpoint out;
  auto config = eagle3_config_json(c, o.format, {"example/target", "LlamaForCausalLM", o.n_layers});
  if (!config) {
    ADD_FAILURE() << config.error().message;
    return out;
  }
  out.config = *config;
  const auto matrix = [&](const std::string& name, std::int64_t n_out, std::int64_t n_in,
                          float gain = 1) {
    std::vector<float> values(std::size_t(n_out * n_in));
    for (float& v : values) v = gain * normal(random) / std::sqrt(float(n_in));
    out.tensors[name] = encoded(o.type, {n_out, n_in}, values);
  };
  const auto norm = [&](const std::string& name, std::int64_t n) {
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& v : values) v = 1 + 0.2f * normal(random);
    out.tensors[name] = encoded(o.type, {n}, values);
  };
  const std::string layer = o.format == Eagle3Format::kEagle3 ? "midlayer." : "layers.0.";
  const std::int64_t h = c.hidden, q = std::int64_t(c.n_heads) * c.head_dim,
                     kv = std::int64_t(c.n_kv_heads) * c.head_dim;
  matrix("fc.weight", h, kEagle3Taps * c.target_hidden);
  norm(layer + "input_layernorm.weight", h);
  norm(layer + "hidden_norm.weight", h);
  norm(layer + "post_attention_layernorm.weight", h);
  matrix(layer + "self_attn.q_proj.weight", q, 2 * h, 2);
  matrix(layer + "self_attn.k_proj.weight", kv, 2 * h, 2);
  matrix(layer + "self_attn.v_proj.weight", kv, 2 * h);
  matrix(layer + "self_attn.o_proj.weight", h, q, 2);
  matrix(layer + "mlp.gate_proj.weight", c.ffn, h);
  matrix(layer + "mlp.up_proj.weight", c.ffn, h);
  matrix(layer + "mlp.down_proj.weight", h, c.ffn);
  norm("norm.weight", h);
  matrix("lm_head.weight", c.n_draft_vocab, h, o.logit_scale);
  if (o.own_embedding) matrix("embed_tokens.weight", c.n_vocab, h, std::sqrt(float(h)));
  if (c.norm_before_fc) norm("input_norm.weight", kEagle3Taps * c.target_hidden);
  for (int i = 0; c.fc_norm && i < kEagle3Taps; ++i)
    norm("fc_norm." + std::to_string(i) + ".weight", c.target_hidden);
  std::vector<TokenId> vocab = o.vocab;
  for (std::int64_t i = 0; o.vocab.empty() && i < c.n_draft_vocab; ++i)
    vocab.push_back(TokenId(i * c.n_vocab / c.n_draft_vocab));
  out.tensors["d2t"] = d2t_of(vocab);
  out.tensors["t2d"] = t2d_of(vocab, c.n_vocab);
  return out;
}

}  // namespace foretoken::testing
