#include "runtime/model/config_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "foretoken/kernels/linear.h"
#include "runtime/model/weights.h"

namespace foretoken {
namespace {

// Keys that no arithmetic depends on.
constexpr std::array<std::string_view, 4> kChangeNothing = {"vocab_size", "tensor_data_layout",
                                                            "rope.scaling.finetuned",
                                                            "rope.scaling.original_context_length"};

}  // namespace

std::string ConfigReader::full(std::string_view key) {
  std::string name = fmt::format("{}.{}", config_.architecture, key);
  read_.insert(name);
  return name;
}

// read(name): the file's value, none if it is of another kind than `kind`.
template <class T, class Read>
T ConfigReader::bounded(std::string_view key, T low, T high, std::optional<T> absent,
                        const char* kind, const Read& read) {
  const std::string name = full(key);
  if (absent && !file_.contains(name)) return *absent;
  const auto value = read(name);
  using Value = typename decltype(read(name))::value_type;
  if (!value && file_.contains(name))
    refuse(ErrorCode::kInvalidInput, "{} is {}, wanted {}", name, file_.describe(name), kind);
  else if (!value)
    refuse(ErrorCode::kInvalidInput, "metadata key {} is missing", name);
  else if (*value >= Value(low) && *value <= Value(high))  // NaN is neither
    return T(*value);
  else
    refuse(ErrorCode::kInvalidInput, "{} is {}, wanted {} to {}", name, *value, low, high);
  return low;
}

std::int64_t ConfigReader::integer(std::string_view key, std::int64_t low, std::int64_t high,
                                   std::optional<std::int64_t> absent) {
  return bounded(key, low, high, absent, "an integer",
                 [&](const std::string& name) { return file_.get_uint(name); });
}

double ConfigReader::number(std::string_view key, double low, double high,
                            std::optional<double> absent) {
  return bounded(key, low, high, absent, "a number", [&](const std::string& name) {
    const auto whole = file_.get_uint(name);
    return whole ? std::optional(double(*whole)) : file_.get_float(name);
  });
}

std::string ConfigReader::text(std::string_view key, std::string_view absent) {
  const std::string name = full(key);
  if (!file_.contains(name)) return std::string(absent);
  const auto value = file_.get_string(name);
  if (!value)
    refuse(ErrorCode::kInvalidInput, "{} is {}, wanted a text", name, file_.describe(name));
  return std::string(value.value_or(absent));
}

std::vector<float> ConfigReader::tensor(const std::string& name, std::int64_t n) {
  const GgufTensor* found = file_.find(name);
  if (!found) return {};
  config_.read_tensors.push_back(name);
  const auto type = weight_type_of(found->ggml_type);
  const bool fits = type && found->shape == std::vector<std::int64_t>{n} &&
                    n % kernels::weight_block_values(*type) == 0 &&
                    found->data.size() == kernels::weight_row_bytes(*type, n);
  std::vector<float> values(static_cast<std::size_t>(n), 1.0f);
  if (fits) kernels::dequantize_file_row(*type, found->data.data(), n, values.data());
  const bool good =
      fits && std::ranges::all_of(values, [](float v) { return std::isfinite(v) && v > 0; });
  if (!good) {
    refuse(ErrorCode::kInvalidInput,
           "tensor {} of type {} and shape [{}], wanted {} positive numbers", name,
           ggml_type_name(found->ggml_type), fmt::join(found->shape, ", "), n);
  }
  return values;
}

RopeScaling ConfigReader::rope_scaling() {
  const std::string type = text("rope.scaling.type", "linear");
  constexpr double kMost = 1e6;
  // "rope.scale_linear" is the older name; 0 is none.
  const double old_factor = number("rope.scale_linear", 0, kMost, 0.0);
  double factor = number("rope.scaling.factor", 0, kMost, old_factor);
  if (factor == 0) factor = 1;
  const auto original = double(integer("rope.scaling.original_context_length", 1,
                                       std::int64_t{1} << 30, config_.context_length));
  if (type == "none") return {};
  if (type == "linear") return factor == 1 ? RopeScaling() : LinearScaling{factor};
  if (type == "yarn") {
    return YarnScaling{.factor = factor,
                       .original_length = original,
                       .beta_fast = number("rope.scaling.yarn_beta_fast", 1e-3, kMost, 32.0),
                       .beta_slow = number("rope.scaling.yarn_beta_slow", 1e-3, kMost, 1.0)};
  }
  if (type == "longrope") {
    // Trained for both; which one holds must not change within a sequence, so that it goes by the
    // longest that the model may be given.
    const std::int64_t n = config_.ropes.back().dim / 2;
    std::vector<float> far = tensor("rope_factors_long.weight", n),
                       near = tensor("rope_factors_short.weight", n);
    std::vector<float>& factors = double(config_.context_length) > original ? far : near;
    if (factors.empty())
      refuse(ErrorCode::kInvalidInput,
             "longrope without tensors rope_factors_{{long,short}}.weight");
    for (float& f : factors) f *= float(factor);
    return LongRopeScaling{std::move(factors)};
  }
  refuse(ErrorCode::kUnsupported, "{} is '{}', wanted none, linear, yarn or longrope",
         full("rope.scaling.type"), type);
  return {};
}

AttentionSpec ConfigReader::attention(bool rope_interleaved) {
  AttentionSpec a;
  // Limits far beyond any published model: they bound allocations, not ambition.
  const std::int64_t heads = integer("attention.head_count", 1, 1024);
  const std::int64_t kv_heads = integer("attention.head_count_kv", 1, 1024, heads);
  if (kv_heads > heads || heads % kv_heads != 0) {
    refuse(ErrorCode::kInvalidInput, "{} is {}, wanted a divisor of the {} heads",
           full("attention.head_count_kv"), kv_heads, heads);
  }
  const std::string key_length = full("attention.key_length");
  if (config_.hidden % heads != 0 && !file_.contains(key_length)) {
    refuse(ErrorCode::kInvalidInput, "{} {} is not a multiple of the {} heads",
           full("embedding_length"), config_.hidden, heads);
  }
  constexpr std::int64_t kMost = std::int64_t{1} << 20;
  const std::int64_t head_dim = integer("attention.key_length", 0, kMost, config_.hidden / heads);
  const std::int64_t value_dim = integer("attention.value_length", 0, kMost, head_dim);
  if (head_dim < 16 || head_dim > 256 || head_dim % 16 != 0 || value_dim != head_dim) {
    refuse(ErrorCode::kUnsupported,
           "head dimension {} (values {}), wanted one multiple of 16 up to 256 for both", head_dim,
           value_dim);
    return a;
  }
  a.n_heads = int(heads);
  a.n_kv_heads = int(kv_heads);
  a.head_dim = int(head_dim);
  const double scale = number("attention.scale", 0, 1e6, 0.0);  // 0: the usual one
  a.scale = scale > 0 ? float(scale) : 1.0f / std::sqrt(float(head_dim));
  // A window that the context fits into is none.
  const std::int64_t window = integer("attention.sliding_window", 0, std::int64_t{1} << 30, 0);
  a.window = window < config_.context_length ? window : 0;

  const std::int64_t rotary = integer("rope.dimension_count", 2, head_dim, head_dim);
  if (rotary % 2 != 0) {
    refuse(ErrorCode::kInvalidInput, "{} is {}, wanted an even number",
           full("rope.dimension_count"), rotary);
  }
  a.rope = int(config_.ropes.size());
  Rope& rope = config_.ropes.emplace_back();
  rope.dim = int(rotary);
  rope.interleaved = rope_interleaved;
  rope.theta = float(number("rope.freq_base", 1.001, 1e30, 10000.0));
  const RopeScaling scaling = rope_scaling();
  rope.factors = rope_factors(scaling, rope.dim, rope.theta);
  rope.magnitude =
      rope_magnitude(scaling) * float(number("rope.scaling.attn_factor", 1e-3, 1e3, 1.0));
  const std::vector<float> given = tensor("rope_freqs.weight", rotary / 2);
  if (rope.factors.empty()) {
    rope.factors = given;
  } else {
    for (std::size_t i = 0; i < given.size(); ++i) rope.factors[i] *= given[i];
  }
  return a;
}

void ConfigReader::uniform_layers(const AttentionSpec& attention, Presence ffn_bias, Norms norms) {
  const std::int64_t width = integer("feed_forward_length", 16, 1 << 20);
  LayerSpec layer{
      .mixer = attention, .ffn = DenseFfnSpec{.width = width, .bias = ffn_bias}, .norms = norms};
  if (const std::int64_t experts = integer("expert_count", 0, 1 << 16, 0); experts > 0) {
    layer.ffn = RoutedFfnSpec{.n_experts = int(experts),
                              .n_used = int(integer("expert_used_count", 1, experts))};
  }
  config_.layers.assign(std::size_t(config_.n_layers), layer);
}

Status ConfigReader::finish() {
  const std::string prefix = config_.architecture + ".";
  for (const std::string& key : file_.keys()) {
    if (!key.starts_with(prefix) || read_.contains(key)) continue;
    if (std::ranges::find(kChangeNothing, std::string_view(key).substr(prefix.size())) !=
        kChangeNothing.end())
      continue;
    const bool none = file_.get_uint(key) == 0u || file_.get_float(key) == 0.0 ||
                      file_.get_bool(key) == false || file_.get_string(key) == "none";
    if (!none) {
      refuse(ErrorCode::kUnsupported,
             "{} is {}: not understood, and may change what the model computes", key,
             file_.describe(key));
    }
  }
  return status_;
}

}  // namespace foretoken
