#include "runtime/speculate/head/eagle3_checkpoint.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstring>
#include <set>

#include "foretoken/protocol/atomic_file.h"
#include "runtime/model/rope_scaling.h"
#include "runtime/unicode/unicode.h"

namespace foretoken {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 20;
constexpr const char* kLayerPrefix[] = {"midlayer.", "layers.0."};

std::string shown(const json::value& value) {
  return printable(json::serialize(value).substr(0, 80));
}

// The fields of one object of config.json; the first thing that is wrong is kept.
class Fields {
 public:
  Fields(const json::object& object, std::string where, Status& status)
      : object_(object), where_(std::move(where)), status_(status) {}

  const json::value* find(const char* key) const {
    const json::value* value = object_.if_contains(key);
    return value && !value->is_null() ? value : nullptr;
  }
  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high,
                       std::optional<std::int64_t> absent = {}) const {
    const json::value* value = find(key);
    if (!value && absent) return *absent;
    if (!value) return wrong(key, "nothing", fmt::format("a number from {} to {}", low, high)), low;
    const bool whole = value->is_int64() && value->get_int64() >= low && value->get_int64() <= high;
    if (!whole) return wrong(key, shown(*value), fmt::format("{} to {}", low, high)), low;
    return value->get_int64();
  }
  double number(const char* key, double absent) const {
    const json::value* value = find(key);
    if (!value) return absent;
    if (value->is_double() && std::isfinite(value->get_double())) return value->get_double();
    if (value->is_int64()) return double(value->get_int64());
    return wrong(key, shown(*value), "a number"), absent;
  }
  bool boolean(const char* key, bool absent) const {
    const json::value* value = find(key);
    if (!value) return absent;
    if (!value->is_bool()) return wrong(key, shown(*value), "true or false"), absent;
    return value->get_bool();
  }
  std::string text(const char* key, std::string absent) const {
    const json::value* value = find(key);
    if (!value) return absent;
    if (!value->is_string()) return wrong(key, shown(*value), "a string"), absent;
    return std::string(value->get_string());
  }
  // A setting that may be given, with one value alone.
  template <class T>
  void only(const char* key, const T& found, const T& wanted) const {
    if (found != wanted)
      wrong(key, fmt::format("{}", found), fmt::format("{}: no other is supported", wanted));
  }
  void wrong(const char* key, const std::string& found, const std::string& wanted) const {
    if (status_)
      status_ =
          bad_eagle3("config", "{}{}: found {}, wanted {}", where_, key, printable(found), wanted);
  }
  const json::object& object() const { return object_; }

 private:
  const json::object& object_;
  std::string where_;
  Status& status_;
};

Llama3Scaling llama3_scaling(const Fields& f) {
  const Llama3Scaling s{.factor = f.number("factor", 8),
                        .low_freq_factor = f.number("low_freq_factor", 1),
                        .high_freq_factor = f.number("high_freq_factor", 4),
                        .original_length = f.number("original_max_position_embeddings", 8192)};
  if (!(s.factor >= 1) || !(s.low_freq_factor > 0) || !(s.high_freq_factor > s.low_freq_factor) ||
      !(s.original_length >= 1))
    f.wrong("rope_scaling", "a range that is none", "factor >= 1, low < high");
  return s;
}

void read_rope(const Fields& layer, Eagle3Config& c, Status& status) {
  // transformers 5 has both in one object.
  const json::value* both = layer.find("rope_parameters");
  const json::value* scaling = both ? both : layer.find("rope_scaling");
  double theta = layer.number("rope_theta", 10000);
  if (scaling && !scaling->is_object())
    return layer.wrong("rope_scaling", shown(*scaling), "an object");
  c.rope_scaling = "null";
  if (scaling) {
    const Fields f(scaling->get_object(), both ? "rope_parameters." : "rope_scaling.", status);
    theta = f.number("rope_theta", theta);
    const std::string type = f.text("rope_type", f.text("type", "default"));
    if (type == "llama3") {
      c.rope_factors = rope_factors(llama3_scaling(f), c.head_dim, theta);
    } else if (type == "linear") {
      const double factor = f.number("factor", 1);
      if (!(factor >= 1)) f.wrong("factor", fmt::format("{}", factor), "at least 1");
      c.rope_factors = rope_factors(LinearScaling{factor}, c.head_dim, theta);
    } else if (type != "default") {
      f.wrong("rope_type", type, "default, linear or llama3");
    }
    if (type != "default") {
      json::object kept = scaling->get_object();
      kept.erase("rope_theta");
      c.rope_scaling = json::serialize(kept);
    }
  }
  c.rope_theta = float(theta);
  if (!(theta > 1)) layer.wrong("rope_theta", fmt::format("{}", theta), "above 1");
}

void read_layer_ids(const Fields& top, Eagle3Config& c, Status& status) {
  const json::value* eagle = top.find("eagle_config");
  if (eagle && !eagle->is_object()) return top.wrong("eagle_config", shown(*eagle), "an object");
  constexpr const char* kKey = "eagle_aux_hidden_state_layer_ids";
  for (const json::object* from : {&top.object(), eagle ? &eagle->get_object() : nullptr}) {
    const json::value* ids = from ? from->if_contains(kKey) : nullptr;
    if (!ids || ids->is_null()) continue;
    std::array<int, kEagle3Taps> read{};
    const json::array* array = ids->if_array();
    bool good = array && array->size() == read.size();
    for (std::size_t i = 0; good && i < read.size(); ++i) {
      const json::value& id = (*array)[i];
      good = id.is_int64() && id.get_int64() >= 0 && id.get_int64() <= 1024;
      if (good) read[i] = int(id.get_int64());
    }
    if (!good) return top.wrong(kKey, shown(*ids), "three layers");
    if (c.layer_ids && *c.layer_ids != read)
      return top.wrong(kKey, shown(*ids),
                       fmt::format("[{}], as it says elsewhere", fmt::join(*c.layer_ids, ", ")));
    c.layer_ids = read;
  }
  if (!eagle) return;
  const Fields inner(eagle->get_object(), "eagle_config.", status);
  inner.only("use_aux_hidden_state", inner.boolean("use_aux_hidden_state", true), true);
}

bool is_float(SafetensorType type) {
  return type == SafetensorType::kF32 || type == SafetensorType::kF16 ||
         type == SafetensorType::kBF16;
}

// Infinity or NaN: all bits of the exponent are set.
std::optional<std::size_t> first_non_finite(const Eagle3Tensor& tensor) {
  const std::size_t width = safetensor_element_bytes(tensor.type);
  const std::uint32_t exponent = tensor.type == SafetensorType::kF16    ? 0x7c00u
                                 : tensor.type == SafetensorType::kBF16 ? 0x7f80u
                                                                        : 0x7f800000u;
  for (std::size_t i = 0; i * width < tensor.bytes.size(); ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, tensor.bytes.data() + i * width, width);
    if ((bits & exponent) == exponent) return i;
  }
  return std::nullopt;
}

std::int64_t i64_at(const Eagle3Tensor& tensor, std::size_t i) {
  std::int64_t value = 0;
  std::memcpy(&value, tensor.bytes.data() + i * 8, 8);
  return value;
}

Result<std::vector<TokenId>> read_vocabulary(const Eagle3Config& c, const Eagle3Tensor* d2t,
                                             const Eagle3Tensor* t2d) {
  std::vector<TokenId> vocab(std::size_t(c.n_draft_vocab));
  std::vector<bool> taken(std::size_t(c.n_vocab));
  for (std::size_t i = 0; i < vocab.size(); ++i) {
    const std::int64_t offset = d2t ? i64_at(*d2t, i) : 0;
    const std::int64_t room = c.n_vocab - std::int64_t(i);
    if (offset < -std::int64_t(i) || offset >= room) {
      return bad_eagle3("vocabulary", "d2t[{}]: offset {} is outside the target's {} tokens", i,
                        offset, c.n_vocab);
    }
    const std::int64_t token = std::int64_t(i) + offset;
    if (taken[std::size_t(token)])
      return bad_eagle3("vocabulary", "d2t[{}]: token {} comes twice", i, token);
    taken[std::size_t(token)] = true;
    vocab[i] = TokenId(token);
  }
  for (std::size_t token = 0; t2d && token < taken.size(); ++token) {
    const auto flag = std::to_integer<unsigned>(t2d->bytes[token]);
    if (flag != unsigned(taken[token])) {
      return bad_eagle3("vocabulary", "t2d[{}]: found {}, wanted {}, as d2t says", token, flag,
                        int(taken[token]));
    }
  }
  return vocab;
}

json::value rope_value(const Eagle3Config& c) {
  json::error_code code;
  return c.rope_scaling.empty() ? json::value() : json::parse(c.rope_scaling, code);
}

// The blocks' outputs as ids of the inputs after them: how both formats are read by everybody.
std::array<int, kEagle3Taps> input_ids(const std::array<int, kEagle3Taps>& taps) {
  return {taps[0] + 1, taps[1] + 1, taps[2] + 1};
}

// A float as the shortest decimal that is read back as it, not as the double it widens to.
double decimal(float value) { return std::stod(fmt::format("{}", value)); }

}  // namespace

const char* eagle3_format_name(Eagle3Format format) {
  return format == Eagle3Format::kEagle3 ? "eagle3" : "speculators";
}

Result<std::array<int, kEagle3Taps>> Eagle3Config::taps(int n_layers) const {
  const auto ids = layer_ids.value_or(std::array<int, kEagle3Taps>{2, n_layers / 2, n_layers - 3});
  const bool outputs = layer_ids && format == Eagle3Format::kEagle3 && ids[0] == 1;
  std::array<int, kEagle3Taps> out{};
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = outputs ? ids[i] : ids[i] - 1;
    if (out[i] < 0 || out[i] >= n_layers) {
      return bad_eagle3("config",
                        "eagle_aux_hidden_state_layer_ids: [{}] of a target with {} layers",
                        fmt::join(ids, ", "), n_layers);
    }
  }
  return out;
}

Result<Eagle3Config> parse_eagle3_config(const std::string& text) {
  if (text.size() > kMaxConfigBytes)
    return bad_eagle3("config", "{} bytes, at most {}", text.size(), kMaxConfigBytes);
  json::parse_options options;
  options.max_depth = 16;
  json::error_code code;
  const json::value value = json::parse(text, code, {}, options);
  if (code || !value.is_object())
    return bad_eagle3("config", "{}", code ? "not JSON: " + code.message() : "not a JSON object");
  Status status = Ok{};
  Eagle3Config c;
  const Fields top(value.get_object(), "", status);
  const std::string kind = top.text("speculators_model_type", "");
  if (!kind.empty()) {
    c.format = Eagle3Format::kSpeculators;
    top.only("speculators_model_type", kind, std::string("eagle3"));
  } else {
    const json::value* architectures = top.find("architectures");
    const json::array* names = architectures ? architectures->if_array() : nullptr;
    const bool known = names && names->size() == 1 && (*names)[0].is_string() &&
                       ((*names)[0].get_string() == "LlamaForCausalLMEagle3" ||
                        (*names)[0].get_string() == "Eagle3LlamaForCausalLM");
    if (!known)
      top.wrong("architectures", architectures ? shown(*architectures) : "nothing",
                "LlamaForCausalLMEagle3 or a speculators_model_type");
  }
  const json::value* inner =
      c.format == Eagle3Format::kSpeculators ? top.find("transformer_layer_config") : &value;
  static const json::object kNone;
  if (!inner || !inner->is_object())
    top.wrong("transformer_layer_config", inner ? shown(*inner) : "nothing", "an object");
  const Fields layer(inner && inner->is_object() ? inner->get_object() : kNone,
                     c.format == Eagle3Format::kSpeculators ? "transformer_layer_config." : "",
                     status);
  if (!status) return status.error();
  layer.only("model_type", layer.text("model_type", "llama"), std::string("llama"));
  layer.only<std::int64_t>("num_hidden_layers", layer.integer("num_hidden_layers", 0, 1024, 1), 1);
  layer.only("hidden_act", layer.text("hidden_act", "silu"), std::string("silu"));
  for (const char* bias : {"attention_bias", "mlp_bias", "qkv_bias", "bias"})
    layer.only(bias, layer.boolean(bias, false), false);
  layer.only("logit_scale", layer.number("logit_scale", 1), 1.0);
  layer.only("tie_word_embeddings", top.boolean("tie_word_embeddings", false), false);
  // Limits far beyond any published head: they bound allocations.
  c.hidden = layer.integer("hidden_size", 16, 1 << 16);
  c.ffn = layer.integer("intermediate_size", 16, 1 << 18);
  c.n_heads = int(layer.integer("num_attention_heads", 1, 1024));
  c.n_kv_heads = int(layer.integer("num_key_value_heads", 1, 1024, c.n_heads));
  c.head_dim = int(layer.integer("head_dim", 2, 1024, c.hidden / std::max(1, c.n_heads)));
  c.n_vocab = layer.integer("vocab_size", 2, 1 << 24);
  c.n_draft_vocab = top.integer("draft_vocab_size", 2, 1 << 24, c.n_vocab);
  c.target_hidden = top.integer("target_hidden_size", 16, 1 << 16, c.hidden);
  c.max_positions = layer.integer("max_position_embeddings", 1, 1 << 30, 2048);
  c.rms_epsilon = float(layer.number("rms_norm_eps", 1e-6));
  c.norm_before_residual = top.boolean("norm_before_residual", false);
  c.norm_before_fc = top.boolean("norm_before_fc", false);
  c.fc_norm = top.boolean("fc_norm", false);
  c.norm_output = top.boolean("norm_output", false);
  if (c.n_heads % c.n_kv_heads != 0)
    layer.wrong("num_key_value_heads", fmt::format("{}", c.n_kv_heads),
                fmt::format("a divisor of the {} heads", c.n_heads));
  if (c.head_dim % 2 != 0) layer.wrong("head_dim", fmt::format("{}", c.head_dim), "an even number");
  if (c.n_draft_vocab > c.n_vocab)
    top.wrong("draft_vocab_size", fmt::format("{}", c.n_draft_vocab),
              fmt::format("at most the {} of vocab_size", c.n_vocab));
  if (!(c.rms_epsilon > 0 && c.rms_epsilon < 1))
    layer.wrong("rms_norm_eps", fmt::format("{}", c.rms_epsilon), "between 0 and 1");
  if (c.fc_norm && c.norm_before_fc)
    top.wrong("fc_norm", "true", "one of fc_norm and norm_before_fc");
  read_rope(layer, c, status);
  read_layer_ids(top, c, status);
  if (!status) return status.error();
  return c;
}

Result<Eagle3Parts> eagle3_parts(const Eagle3Checkpoint& checkpoint) {
  auto config = parse_eagle3_config(checkpoint.config);
  if (!config) return config.error();
  Eagle3Parts parts;
  parts.config = std::move(*config);
  const Eagle3Config& c = parts.config;
  const auto begins = [&](const char* prefix) {
    return std::ranges::any_of(checkpoint.tensors,
                               [&](const auto& t) { return t.first.starts_with(prefix); });
  };
  if (begins(kLayerPrefix[0]) && begins(kLayerPrefix[1]))
    return bad_eagle3("extra", "both midlayer.* and layers.0.* are there, wanted one of them");
  const std::string layer = kLayerPrefix[begins(kLayerPrefix[1]) ? 1 : 0];

  const std::int64_t h = c.hidden, q_width = std::int64_t(c.n_heads) * c.head_dim,
                     kv_width = std::int64_t(c.n_kv_heads) * c.head_dim;
  const Eagle3Tensor *d2t = nullptr, *t2d = nullptr;
  struct Part {
    std::string name;
    std::vector<std::int64_t> shape;
    const Eagle3Tensor** to;
    bool required = true;
    std::optional<SafetensorType> type = {};
  };
  std::vector<Part> wanted = {
      {"fc.weight", {h, kEagle3Taps * c.target_hidden}, &parts.fc},
      {layer + "input_layernorm.weight", {h}, &parts.input_layernorm},
      {layer + "hidden_norm.weight", {h}, &parts.hidden_norm},
      {layer + "self_attn.q_proj.weight", {q_width, 2 * h}, &parts.q},
      {layer + "self_attn.k_proj.weight", {kv_width, 2 * h}, &parts.k},
      {layer + "self_attn.v_proj.weight", {kv_width, 2 * h}, &parts.v},
      {layer + "self_attn.o_proj.weight", {h, q_width}, &parts.o},
      {layer + "post_attention_layernorm.weight", {h}, &parts.post_attention_layernorm},
      {layer + "mlp.gate_proj.weight", {c.ffn, h}, &parts.gate},
      {layer + "mlp.up_proj.weight", {c.ffn, h}, &parts.up},
      {layer + "mlp.down_proj.weight", {h, c.ffn}, &parts.down},
      {"norm.weight", {h}, &parts.norm},
      {"lm_head.weight", {c.n_draft_vocab, h}, &parts.lm_head},
      // The target's embedding serves where its width fits.
      {"embed_tokens.weight", {c.n_vocab, h}, &parts.embedding, c.hidden != c.target_hidden},
      {"d2t", {c.n_draft_vocab}, &d2t, c.n_draft_vocab != c.n_vocab, SafetensorType::kI64},
      {"t2d", {c.n_vocab}, &t2d, false, SafetensorType::kBool}};
  if (c.norm_before_fc)
    wanted.push_back({"input_norm.weight", {kEagle3Taps * c.target_hidden}, &parts.input_norm});
  for (std::size_t i = 0; c.fc_norm && i < parts.fc_norm.size(); ++i)
    wanted.push_back({fmt::format("fc_norm.{}.weight", i), {c.target_hidden}, &parts.fc_norm[i]});
  std::set<std::string> known;
  for (const auto& [name, shape, to, required, type] : wanted) {
    known.insert(name);
    const auto found = checkpoint.tensors.find(name);
    if (found == checkpoint.tensors.end()) {
      if (required) return bad_eagle3("missing", "{}", name);
      continue;
    }
    const Eagle3Tensor& t = found->second;
    if (type ? t.type != *type : !is_float(t.type)) {
      return bad_eagle3("dtype", "{}: found {}, wanted {}", name, safetensor_type_name(t.type),
                        type ? safetensor_type_name(*type) : "F32, F16 or BF16");
    }
    std::size_t bytes = safetensor_element_bytes(t.type);
    for (const std::int64_t extent : shape) bytes *= std::size_t(extent);
    if (t.shape != shape || t.bytes.size() != bytes) {
      return bad_eagle3("shape", "{}: found [{}], wanted [{}]", name, fmt::join(t.shape, ", "),
                        fmt::join(shape, ", "));
    }
    if (!type)
      if (const auto at = first_non_finite(t)) return bad_eagle3("non-finite", "{}[{}]", name, *at);
    *to = &t;
  }
  for (const auto& [name, tensor] : checkpoint.tensors) {
    if (!known.contains(name)) {
      return bad_eagle3("extra", "{} is not a tensor of such a head as config.json says",
                        printable(name.substr(0, 100)));
    }
  }
  auto vocab = read_vocabulary(c, d2t, t2d);
  if (!vocab) return vocab.error();
  parts.vocab = std::move(*vocab);
  return parts;
}

bool is_eagle3_folder(const std::filesystem::path& folder) {
  const auto text = read_file(folder / "config.json", kMaxConfigBytes);
  if (!text) return false;
  const std::string_view view(reinterpret_cast<const char*>(text->data()), text->size());
  return view.find("agle3") != std::string_view::npos;
}

Result<Eagle3Checkpoint> read_eagle3(const std::filesystem::path& folder) {
  const auto here = [&](Error error) {
    error.message += fmt::format(" (in {})", folder.string());
    return error;
  };
  auto text = read_file(folder / "config.json", kMaxConfigBytes);
  if (!text) return here(text.error());
  Eagle3Checkpoint checkpoint;
  checkpoint.config.assign(reinterpret_cast<const char*>(text->data()), text->size());
  auto file = SafetensorsFile::open((folder / "model.safetensors").string());
  if (!file) return here(file.error());
  for (const Safetensor& tensor : (*file)->tensors()) {
    checkpoint.tensors[tensor.name] = {
        tensor.type, tensor.shape, {tensor.data.begin(), tensor.data.end()}};
  }
  if (auto parts = eagle3_parts(checkpoint); !parts) return here(parts.error());
  return checkpoint;
}

Status write_eagle3(const Eagle3Checkpoint& checkpoint, const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::vector<Safetensor> tensors;
  for (const auto& [name, tensor] : checkpoint.tensors)
    tensors.push_back({name, tensor.type, tensor.shape, tensor.bytes});
  // As PyTorch's own writer marks its files; some loaders insist on it.
  const auto bytes = write_safetensors(tensors, {{"format", "pt"}});
  if (auto s = write_file_atomically(folder / "model.safetensors", bytes); !s) return s;
  return write_file_atomically(folder / "config.json", std::as_bytes(std::span(checkpoint.config)));
}

Result<std::string> eagle3_config_json(const Eagle3Config& c, Eagle3Format format,
                                       const Eagle3Verifier& verifier) {
  auto taps = c.taps(verifier.n_layers);
  if (!taps) return taps.error();
  const auto ids = input_ids(*taps);
  // A list that begins with 1 would be read as of outputs.
  if (format == Eagle3Format::kEagle3 && ids[0] == 1)
    return bad_eagle3("config",
                      "the output of the first block cannot be named in the eagle3 format");
  json::object layer{{"model_type", "llama"},
                     {"hidden_size", c.hidden},
                     {"intermediate_size", c.ffn},
                     {"num_attention_heads", c.n_heads},
                     {"num_key_value_heads", c.n_kv_heads},
                     {"head_dim", c.head_dim},
                     {"num_hidden_layers", 1},
                     {"hidden_act", "silu"},
                     {"vocab_size", c.n_vocab},
                     {"max_position_embeddings", c.max_positions},
                     {"rms_norm_eps", decimal(c.rms_epsilon)},
                     {"rope_theta", decimal(c.rope_theta)},
                     {"rope_scaling", rope_value(c)},
                     {"attention_bias", false},
                     {"mlp_bias", false}};
  // (Arrays of one element are spelled out: in braces they would be the element.)
  const json::array id_array(ids.begin(), ids.end());
  const auto list_of = [](json::value value) {
    json::array list;
    list.push_back(std::move(value));
    return list;
  };
  json::object out;
  if (format == Eagle3Format::kEagle3) {
    out["architectures"] = list_of("LlamaForCausalLMEagle3");
    for (const auto& entry : layer) out.insert(entry);
    out["eagle_config"] = json::object{{"eagle_aux_hidden_state_layer_ids", id_array},
                                       {"use_aux_hidden_state", true}};
    if (c.target_hidden != c.hidden) out["target_hidden_size"] = c.target_hidden;
  } else {
    out["architectures"] = list_of("Eagle3Speculator");
    out["speculators_model_type"] = "eagle3";
    const json::object proposal{{"proposal_type", "greedy"},
                                {"speculative_tokens", 3},
                                {"verifier_accept_k", 1},
                                {"accept_tolerance", 0.0}};
    out["speculators_config"] = json::object{
        {"algorithm", "eagle3"},
        {"default_proposal_method", "greedy"},
        {"proposal_methods", list_of(proposal)},
        {"verifier", json::object{{"name_or_path", verifier.name},
                                  {"architectures", list_of(json::value(verifier.architecture))}}}};
    out["transformer_layer_config"] = layer;
    out["target_hidden_size"] =
        c.target_hidden != c.hidden ? json::value(c.target_hidden) : json::value();
  }
  out["draft_vocab_size"] = c.n_draft_vocab;
  out["tie_word_embeddings"] = false;
  out["torch_dtype"] = "bfloat16";
  out["norm_before_residual"] = c.norm_before_residual;
  out["norm_before_fc"] = c.norm_before_fc;
  out["fc_norm"] = c.fc_norm;
  out["norm_output"] = c.norm_output;
  out["eagle_aux_hidden_state_layer_ids"] = id_array;
  return json::serialize(out) + "\n";
}

Result<Eagle3Checkpoint> converted(const Eagle3Checkpoint& checkpoint, Eagle3Format to,
                                   const Eagle3Verifier& verifier) {
  auto parts = eagle3_parts(checkpoint);
  if (!parts) return parts.error();
  if (parts->config.format == to) return checkpoint;
  Eagle3Checkpoint out;
  auto config = eagle3_config_json(parts->config, to, verifier);
  if (!config) return config.error();
  out.config = std::move(*config);
  const std::string prefix = kLayerPrefix[to == Eagle3Format::kSpeculators ? 1 : 0];
  for (const auto& [name, tensor] : checkpoint.tensors) {
    std::string renamed = name;
    for (const std::string from : kLayerPrefix)
      if (name.starts_with(from)) renamed = prefix + name.substr(from.size());
    out.tensors[renamed] = tensor;
  }
  return out;
}

}  // namespace foretoken
