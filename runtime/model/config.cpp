#include "runtime/model/config.h"

#include "foretoken/protocol/failure.h"
#include "runtime/model/arch/architecture.h"
#include "runtime/model/config_reader.h"

namespace foretoken {
namespace {

template <class... Args>
Error bad(const GgufFile& file, ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  return failure(code, "{}: {}", file.path(), fmt::format(text, std::forward<Args>(args)...));
}

// What every architecture has; its layers are its own to describe.
void read_common(ConfigReader& reader, ModelConfig& c) {
  c.n_layers = int(reader.integer("block_count", 1, 512));
  c.hidden = reader.integer("embedding_length", 16, 1 << 17);
  c.context_length = reader.integer("context_length", 64, 1 << 24);
  c.rms_epsilon = float(reader.number("attention.layer_norm_rms_epsilon", 1e-12, 0.1));
}

Status read_vocabulary(const GgufFile& file, ModelConfig& c) {
  const GgufTensor* embedding = file.find("token_embd.weight");
  if (!embedding) return bad(file, ErrorCode::kInvalidInput, "tensor token_embd.weight is missing");
  if (embedding->shape.size() != 2 || embedding->shape[0] != c.hidden || embedding->shape[1] < 2 ||
      embedding->shape[1] > (1 << 24)) {
    return bad(file, ErrorCode::kInvalidInput,
               "tensor token_embd.weight has shape [{}], wanted [{}, vocabulary]",
               fmt::join(embedding->shape, ", "), c.hidden);
  }
  c.n_vocab = embedding->shape[1];
  c.tied_output = file.find("output.weight") == nullptr;
  return Ok{};
}

Status check_layers(const GgufFile& file, const ModelConfig& c) {
  for (int l = 0; l < c.n_layers; ++l) {
    if (const auto what = unsupported(c.layers[std::size_t(l)])) {
      return bad(file, ErrorCode::kUnsupported, "layer {} has {}, which is not supported", l,
                 *what);
    }
    const AttentionSpec &a = c.attention(l), &first = c.attention(0);
    if (a.n_heads != first.n_heads || a.n_kv_heads != first.n_kv_heads ||
        a.head_dim != first.head_dim) {
      return bad(file, ErrorCode::kUnsupported,
                 "layer {} has other heads than layer 0, which is not supported", l);
    }
  }
  return Ok{};
}

}  // namespace

Result<ModelConfig> read_model_config(const GgufFile& file) {
  ModelConfig c;
  const auto name = file.get_string("general.architecture");
  if (!name) {
    return bad(file, ErrorCode::kInvalidInput,
               "metadata key general.architecture is missing or not a string");
  }
  const Architecture* architecture = find_architecture(*name);
  if (!architecture) {
    return bad(file, ErrorCode::kUnsupported,
               "architecture '{}' is not supported, wanted one of: {}", *name,
               architecture_names());
  }
  c.architecture = *name;
  c.name = file.get_string("general.name").value_or(*name);
  ConfigReader reader(file, c);
  read_common(reader, c);
  architecture->read(reader);
  if (auto s = reader.finish(); !s) return s.error();
  if (auto s = read_vocabulary(file, c); !s) return s.error();
  if (auto s = check_layers(file, c); !s) return s.error();
  return c;
}

}  // namespace foretoken
