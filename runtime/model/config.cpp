#include <cmath>

#include <fmt/format.h>

#include "runtime/model/weights.h"

namespace foretoken {
namespace {

Error bad(const GgufFile& file, std::string message) {
  return Error{ErrorCode::kInvalidInput, fmt::format("{}: {}", file.path(), message)};
}

// A required integer in [low, high].
Result<std::int64_t> required_int(const GgufFile& file, const std::string& key, std::int64_t low,
                                  std::int64_t high) {
  const auto value = file.get_uint(key);
  if (!value) return bad(file, fmt::format("metadata key {} is missing or not an integer", key));
  if (*value < std::uint64_t(low) || *value > std::uint64_t(high)) {
    return bad(file, fmt::format("{} is {}, wanted {} to {}", key, *value, low, high));
  }
  return static_cast<std::int64_t>(*value);
}

}  // namespace

Result<ModelConfig> read_model_config(const GgufFile& file) {
  ModelConfig c;
  const auto architecture = file.get_string("general.architecture");
  if (!architecture)
    return bad(file, "metadata key general.architecture is missing or not a string");
  c.architecture = *architecture;
  if (c.architecture != "llama" && c.architecture != "qwen2") {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{}: architecture '{}' is not supported, wanted one of: llama, qwen2",
                             file.path(), c.architecture)};
  }
  c.name = file.get_string("general.name").value_or(c.architecture);
  const std::string prefix = c.architecture + ".";
  // Limits far beyond any published model of these families: they bound allocations, not ambition.
  struct Field {
    const char* key;
    std::int64_t low, high;
    std::int64_t value = 0;
  };
  Field layers{"block_count", 1, 512}, hidden{"embedding_length", 16, 1 << 17},
      ffn{"feed_forward_length", 16, 1 << 20}, heads{"attention.head_count", 1, 1024},
      context{"context_length", 64, 1 << 24};
  for (Field* f : {&layers, &hidden, &ffn, &heads, &context}) {
    auto value = required_int(file, prefix + f->key, f->low, f->high);
    if (!value) return value.error();
    f->value = *value;
  }
  c.n_layers = static_cast<int>(layers.value);
  c.hidden = hidden.value;
  c.ffn = ffn.value;
  c.n_heads = static_cast<int>(heads.value);
  c.context_length = context.value;
  const std::uint64_t kv_heads =
      file.get_uint(prefix + "attention.head_count_kv").value_or(c.n_heads);
  if (kv_heads == 0 || kv_heads > std::uint64_t(c.n_heads) || c.n_heads % kv_heads != 0) {
    return bad(file,
               fmt::format("{}attention.head_count_kv is {}, wanted a divisor of the {} heads",
                           prefix, kv_heads, c.n_heads));
  }
  c.n_kv_heads = static_cast<int>(kv_heads);
  if (c.hidden % c.n_heads != 0 && !file.get_uint(prefix + "attention.key_length")) {
    return bad(file, fmt::format("{}embedding_length {} is not a multiple of the {} heads", prefix,
                                 c.hidden, c.n_heads));
  }
  const std::uint64_t head_dim =
      file.get_uint(prefix + "attention.key_length").value_or(c.hidden / c.n_heads);
  const std::uint64_t value_dim =
      file.get_uint(prefix + "attention.value_length").value_or(head_dim);
  if (head_dim < 16 || head_dim > 256 || head_dim % 16 != 0 || value_dim != head_dim) {
    return Error{
        ErrorCode::kUnsupported,
        fmt::format(
            "{}: head dimension {} (values {}), wanted one multiple of 16 up to 256 for both",
            file.path(), head_dim, value_dim)};
  }
  c.head_dim = static_cast<int>(head_dim);
  const std::uint64_t rotary = file.get_uint(prefix + "rope.dimension_count").value_or(head_dim);
  if (rotary == 0 || rotary > head_dim || rotary % 2 != 0) {
    return bad(file, fmt::format("{}rope.dimension_count is {}, wanted an even number up to {}",
                                 prefix, rotary, head_dim));
  }
  c.rotary_dim = static_cast<int>(rotary);
  c.rope_interleaved = c.architecture == "llama";
  c.rope_theta = static_cast<float>(file.get_float(prefix + "rope.freq_base").value_or(10000.0));
  const auto epsilon = file.get_float(prefix + "attention.layer_norm_rms_epsilon");
  if (!epsilon)
    return bad(file,
               fmt::format("metadata key {}attention.layer_norm_rms_epsilon is missing", prefix));
  c.rms_epsilon = static_cast<float>(*epsilon);
  if (!(c.rope_theta > 1 && std::isfinite(c.rope_theta)) ||
      !(c.rms_epsilon > 0 && c.rms_epsilon < 1)) {
    return bad(file, fmt::format("rope.freq_base {} or layer_norm_rms_epsilon {} is out of range",
                                 c.rope_theta, c.rms_epsilon));
  }
  if (const auto scaling = file.get_string(prefix + "rope.scaling.type");
      scaling && *scaling != "none") {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{}: rope.scaling.type '{}' is not supported, wanted none",
                             file.path(), *scaling)};
  }
  if (const auto experts = file.get_uint(prefix + "expert_count"); experts && *experts > 0) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{}: expert_count is {}, mixture-of-experts models are not supported",
                             file.path(), *experts)};
  }
  const GgufTensor* embedding = file.find("token_embd.weight");
  if (!embedding) return bad(file, "tensor token_embd.weight is missing");
  if (embedding->shape.size() != 2 || embedding->shape[0] != c.hidden || embedding->shape[1] < 2 ||
      embedding->shape[1] > (1 << 24)) {
    return bad(file, fmt::format("tensor token_embd.weight has shape [{}], wanted [{}, vocabulary]",
                                 fmt::join(embedding->shape, ", "), c.hidden));
  }
  c.n_vocab = embedding->shape[1];
  c.tied_output = file.find("output.weight") == nullptr;
  return c;
}

}  // namespace foretoken
