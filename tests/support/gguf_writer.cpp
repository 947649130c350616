#include "tests/support/gguf_writer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <span>

#include "foretoken/kernels/linear.h"
#include "runtime/model/config.h"
#include "runtime/model/weights.h"

namespace foretoken::testing {
namespace {

constexpr std::uint32_t kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9;
constexpr std::size_t kAlignment = 32;

template <class T>
void put(std::vector<std::uint8_t>& out, T value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof value);
  std::memcpy(out.data() + at, &value, sizeof value);
}
void put_string(std::vector<std::uint8_t>& out, const std::string& s) {
  put<std::uint64_t>(out, s.size());
  out.insert(out.end(), s.begin(), s.end());
}

}  // namespace

bool GgufWriter::key(const std::string& name, std::uint32_t type) {
  if (!names_.insert(name).second) return false;
  put_string(metadata_, name);
  put(metadata_, type);
  ++n_metadata_;
  return true;
}
void GgufWriter::add_string(const std::string& k, const std::string& value) {
  if (!key(k, kString)) return;
  put_string(metadata_, value);
}
void GgufWriter::add_uint32(const std::string& k, std::uint32_t value) {
  if (!key(k, kUint32)) return;
  put(metadata_, value);
}
void GgufWriter::add_float32(const std::string& k, float value) {
  if (!key(k, kFloat32)) return;
  put(metadata_, value);
}
void GgufWriter::add_bool(const std::string& k, bool value) {
  if (!key(k, kBool)) return;
  put<std::uint8_t>(metadata_, value);
}
void GgufWriter::add_strings(const std::string& k, const std::vector<std::string>& values) {
  if (!key(k, kArray)) return;
  put(metadata_, kString);
  put<std::uint64_t>(metadata_, values.size());
  for (const std::string& v : values) put_string(metadata_, v);
}
void GgufWriter::add_int32s(const std::string& k, const std::vector<std::int32_t>& values) {
  if (!key(k, kArray)) return;
  put(metadata_, kInt32);
  put<std::uint64_t>(metadata_, values.size());
  for (const std::int32_t v : values) put(metadata_, v);
}
void GgufWriter::add_tensor(const std::string& name, const std::vector<std::int64_t>& shape,
                            const std::vector<float>& values) {
  std::vector<std::uint8_t> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  add_raw_tensor(name, shape, 0, std::move(bytes));
}
void GgufWriter::add_raw_tensor(const std::string& name, const std::vector<std::int64_t>& shape,
                                std::uint32_t ggml_type, std::vector<std::uint8_t> bytes) {
  if (!names_.insert(name).second) return;
  tensors_.push_back({name, shape, ggml_type, std::move(bytes)});
}

std::vector<std::uint8_t> GgufWriter::bytes() const {
  std::vector<std::uint8_t> out{'G', 'G', 'U', 'F'};
  put<std::uint32_t>(out, 3);
  put<std::uint64_t>(out, tensors_.size());
  put<std::uint64_t>(out, n_metadata_);
  out.insert(out.end(), metadata_.begin(), metadata_.end());
  std::uint64_t offset = 0;
  for (const Tensor& t : tensors_) {
    put_string(out, t.name);
    put<std::uint32_t>(out, std::uint32_t(t.shape.size()));
    for (const std::int64_t d : t.shape) put<std::uint64_t>(out, std::uint64_t(d));
    put(out, t.type);
    put(out, offset);
    offset += (t.bytes.size() + kAlignment - 1) / kAlignment * kAlignment;
  }
  out.resize((out.size() + kAlignment - 1) / kAlignment * kAlignment);
  for (const Tensor& t : tensors_) {
    out.insert(out.end(), t.bytes.begin(), t.bytes.end());
    out.resize((out.size() + kAlignment - 1) / kAlignment * kAlignment);
  }
  return out;
}

void GgufWriter::write(const std::string& path) const {
  const std::vector<std::uint8_t> data = bytes();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data.data()), std::streamsize(data.size()));
}

namespace {

// fp16, towards zero; of ordinary size.
std::uint16_t half_bits(float v) {
  const auto bits = std::bit_cast<std::uint32_t>(v);
  return std::uint16_t((bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - (112 << 10)));
}

// Random codes and scales of a quantised type; its fp16 fields are set so that the values have mean
// 0 and root mean square `rms`.
std::vector<std::uint8_t> random_blocks(std::uint32_t ggml_type, std::int64_t n_values, float rms,
                                        std::mt19937_64& random) {
  struct Fields {
    std::size_t d, m;  // offsets in a block; m = 0: none
    float m_of_d;      // minimum that makes the mean 0, where d is 1
  };
  static const std::map<std::uint32_t, Fields> kFields = {
      {2, {0, 0, 0}},      {3, {0, 2, -7.5f}},   {6, {0, 0, 0}},    {7, {0, 2, -15.5f}},
      {8, {0, 0, 0}},      {10, {80, 82, 1.5f}}, {11, {108, 0, 0}}, {12, {0, 2, 7.5f}},
      {13, {0, 2, 15.5f}}, {14, {208, 0, 0}},    {20, {0, 0, 0}}};
  const Fields f = kFields.at(ggml_type);
  const GgmlBlock block = ggml_block(ggml_type).value();
  std::vector<std::uint8_t> bytes(std::size_t(n_values / block.elements * block.bytes));
  for (std::uint8_t& b : bytes) b = std::uint8_t(random());
  auto put_half = [&](std::size_t at, float v) {
    const std::uint16_t half = half_bits(v);
    std::memcpy(bytes.data() + at, &half, 2);
  };
  auto set = [&](float d) {
    for (std::size_t at = 0; at < bytes.size(); at += std::size_t(block.bytes)) {
      put_half(at + f.d, d);
      if (f.m) put_half(at + f.m, d * f.m_of_d);
    }
  };
  set(1.0f);
  std::vector<float> values(static_cast<std::size_t>(n_values));
  kernels::dequantize_file_row(weight_type_of(ggml_type).value(),
                               reinterpret_cast<const std::byte*>(bytes.data()), n_values,
                               values.data());
  double square = 0;
  for (const float v : values) square += double(v) * v;
  set(float(rms / std::sqrt(square / double(n_values))));
  return bytes;
}

}  // namespace

void write_tiny_model(const std::string& path, const TinyModelOptions& o) {
  GgufWriter w;
  if (o.first) o.first(w);
  const std::string& arch = o.architecture;
  w.add_string("general.architecture", arch);
  w.add_string("general.name", "tiny random " + arch);
  w.add_uint32(arch + ".block_count", std::uint32_t(o.n_layers));
  w.add_uint32(arch + ".context_length", std::uint32_t(o.context_length));
  w.add_uint32(arch + ".embedding_length", std::uint32_t(o.hidden));
  w.add_uint32(arch + ".feed_forward_length", std::uint32_t(o.ffn));
  w.add_uint32(arch + ".attention.head_count", std::uint32_t(o.n_heads));
  w.add_uint32(arch + ".attention.head_count_kv", std::uint32_t(o.n_kv_heads));
  w.add_uint32(arch + ".attention.key_length", std::uint32_t(o.head_dim));
  w.add_uint32(arch + ".attention.value_length", std::uint32_t(o.head_dim));
  w.add_uint32(arch + ".rope.dimension_count", std::uint32_t(o.head_dim));
  w.add_float32(arch + ".rope.freq_base", 10000.0f);
  w.add_float32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);

  // GPT-2's byte alphabet, then filler words and two control tokens.
  std::vector<std::string> tokens;
  std::vector<std::int32_t> types;
  auto utf8 = [](int c) {
    std::string s;
    if (c < 0x80) {
      s += char(c);
    } else {
      s += char(0xc0 | (c >> 6));
      s += char(0x80 | (c & 0x3f));
    }
    return s;
  };
  int extra = 0;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174);
    tokens.push_back(utf8(printable ? b : 256 + extra++));
    types.push_back(1);
  }
  tokens.push_back("ab");  // the one merge's
  types.push_back(1);
  while (int(tokens.size()) < o.n_vocab - 2) {
    tokens.push_back("zz" + std::to_string(tokens.size()));
    types.push_back(1);
  }
  tokens.push_back("<|im_start|>");
  tokens.push_back("<|im_end|>");
  types.insert(types.end(), {3, 3});
  w.add_string("tokenizer.ggml.model", "gpt2");
  w.add_string("tokenizer.ggml.pre", "gpt-2");
  w.add_strings("tokenizer.ggml.tokens", tokens);
  w.add_int32s("tokenizer.ggml.token_type", types);
  w.add_strings("tokenizer.ggml.merges", {"a b"});
  w.add_uint32("tokenizer.ggml.eos_token_id", std::uint32_t(o.n_vocab - 1));
  w.add_bool("tokenizer.ggml.add_bos_token", false);
  w.add_string("tokenizer.chat_template",
               "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
               "message['content'] + "
               "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ "
               "'<|im_start|>assistant\n' }}{% endif %}");

  std::mt19937_64 random(o.seed);
  std::normal_distribution<float> normal;
  auto matrix = [&](const std::string& name, std::int64_t n_out, std::int64_t n_in, float gain) {
    std::vector<float> values(std::size_t(n_out * n_in));
    const float scale = gain / std::sqrt(float(n_in));
    if (o.ggml_type != 0) {
      w.add_raw_tensor(name, {n_in, n_out}, o.ggml_type,
                       random_blocks(o.ggml_type, n_out * n_in, scale, random));
      return;
    }
    for (float& v : values) v = normal(random) * scale;
    w.add_tensor(name, {n_in, n_out}, values);
  };
  auto vector = [&](const std::string& name, std::int64_t n, float mean, float spread) {
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& v : values) v = mean + spread * normal(random);
    w.add_tensor(name, {n}, values);
  };
  matrix("token_embd.weight", o.n_vocab, o.hidden, std::sqrt(float(o.hidden)));
  if (!o.tied) matrix("output.weight", o.n_vocab, o.hidden, o.logit_scale);
  vector("output_norm.weight", o.hidden, 1.0f, 0.1f);
  // What else there is follows from what the architecture makes of the metadata.
  const std::vector<std::uint8_t> so_far = w.bytes();
  const auto file = GgufFile::parse(std::as_bytes(std::span(so_far)), path);
  const auto config = file ? read_model_config(**file) : Result<ModelConfig>(file.error());
  if (!config) {
    ADD_FAILURE() << config.error().message;
    return;
  }
  for (int l = 0; l < o.n_layers; ++l) {
    const std::string b = "blk." + std::to_string(l) + ".";
    const AttentionSpec& a = config->attention(l);
    const LayerSpec& layer = config->layers[std::size_t(l)];
    const std::int64_t ffn = std::get<DenseFfnSpec>(layer.ffn).width, d = a.head_dim,
                       q = a.n_heads * d, kv = a.n_kv_heads * d;
    if (layer.norms != Norms::kPost) {
      vector(b + "attn_norm.weight", o.hidden, 1.0f, 0.1f);
      vector(b + "ffn_norm.weight", o.hidden, 1.0f, 0.1f);
    }
    matrix(b + "attn_q.weight", q, o.hidden, 2.0f);
    matrix(b + "attn_k.weight", kv, o.hidden, 2.0f);
    matrix(b + "attn_v.weight", kv, o.hidden, 1.0f);
    matrix(b + "attn_output.weight", o.hidden, q, 2.0f);
    matrix(b + "ffn_gate.weight", ffn, o.hidden, 1.0f);
    matrix(b + "ffn_up.weight", ffn, o.hidden, 1.0f);
    matrix(b + "ffn_down.weight", o.hidden, ffn, 1.0f);
    if (a.qkv_bias == Presence::kRequired) {
      vector(b + "attn_q.bias", q, 0.0f, 0.5f);
      vector(b + "attn_k.bias", kv, 0.0f, 1.0f);
      vector(b + "attn_v.bias", kv, 0.0f, 0.2f);
    }
    if (a.qk_norm != QkNorm::kNone) {
      const bool whole = a.qk_norm == QkNorm::kWholeWidth;
      vector(b + "attn_q_norm.weight", whole ? q : d, 1.0f, 0.3f);
      vector(b + "attn_k_norm.weight", whole ? kv : d, 1.0f, 0.3f);
    }
    if (layer.norms != Norms::kPre) {
      vector(b + "post_attention_norm.weight", o.hidden, 1.0f, 0.1f);
      vector(b + "post_ffw_norm.weight", o.hidden, 1.0f, 0.1f);
    }
  }
  w.write(path);
}

TemporaryDirectory::TemporaryDirectory() {
  std::string pattern = (std::filesystem::temp_directory_path() / "foretoken-test-XXXXXX").string();
  if (mkdtemp(pattern.data())) path_ = pattern;
}
TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

}  // namespace foretoken::testing
