#include "runtime/model/weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include <fmt/format.h>

namespace foretoken {

using kernels::WeightType;

namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

}  // namespace

WeightBuffer::WeightBuffer(std::size_t bytes) : bytes_(bytes) {
  // Where huge pages pay, on their border.
  const std::size_t border = bytes >= kHugePage ? kHugePage : 0, mapped = bytes + border;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;
  const std::shared_ptr<std::byte> mapping(static_cast<std::byte*>(memory),
                                           [mapped](std::byte* p) { munmap(p, mapped); });
  data_ = mapping;
  if (border == 0) return;
  const auto past = reinterpret_cast<std::uintptr_t>(memory) % border;
  data_ = {mapping, mapping.get() + (border - past) % border};
  madvise(data(), bytes, MADV_HUGEPAGE);
}

WeightArena::WeightArena(std::size_t bytes) : whole_(bytes) {}

WeightBuffer WeightArena::take(std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  if (!whole_.data_ || bytes > whole_.bytes_ - taken_) return WeightBuffer(bytes);
  WeightBuffer part;
  part.data_ = {whole_.data_, whole_.data() + taken_};
  part.bytes_ = bytes;
  taken_ = std::min(whole_.bytes_, taken_ + (bytes + kLine - 1) / kLine * kLine);
  return part;
}

std::optional<WeightType> weight_type_of(std::uint32_t ggml_type) {
  switch (ggml_type) {
    case 0:
      return WeightType::kF32;
    case 1:
      return WeightType::kF16;
    case 2:
      return WeightType::kQ4_0;
    case 3:
      return WeightType::kQ4_1;
    case 6:
      return WeightType::kQ5_0;
    case 7:
      return WeightType::kQ5_1;
    case 8:
      return WeightType::kQ8_0;
    case 10:
      return WeightType::kQ2_K;
    case 11:
      return WeightType::kQ3_K;
    case 12:
      return WeightType::kQ4_K;
    case 13:
      return WeightType::kQ5_K;
    case 14:
      return WeightType::kQ6_K;
    case 20:
      return WeightType::kIQ4_NL;
    case 30:
      return WeightType::kBF16;
    default:
      return std::nullopt;
  }
}

namespace {

class Loader {
 public:
  Loader(const GgufFile& file, kernels::ThreadPool& pool,
         const std::function<void(double)>& progress)
      : file_(file), pool_(pool), progress_(progress) {
    for (const GgufTensor& t : file.tensors()) total_ += t.data.size();
  }

  Result<const GgufTensor*> find(const std::string& name, std::vector<std::int64_t> shape) {
    const GgufTensor* tensor = file_.find(name);
    if (!tensor) return bad(ErrorCode::kInvalidInput, fmt::format("tensor {} is missing", name));
    if (tensor->shape != shape) {
      return bad(ErrorCode::kInvalidInput,
                 fmt::format("tensor {} has shape [{}], wanted [{}]", name,
                             fmt::join(tensor->shape, ", "), fmt::join(shape, ", ")));
    }
    return tensor;
  }

  Result<WeightType> type_of(const GgufTensor& tensor) {
    const auto type = weight_type_of(tensor.ggml_type);
    if (!type) {
      return bad(ErrorCode::kUnsupported,
                 fmt::format("tensor {} has type {}, wanted one of F32, F16, BF16, Q8_0, Q4_0, "
                             "Q4_1, Q5_0, Q5_1, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K",
                             tensor.name, ggml_type_name(tensor.ggml_type)));
    }
    if (tensor.shape[0] % kernels::weight_block_values(*type) != 0) {
      return bad(ErrorCode::kInvalidInput,
                 fmt::format("tensor {} has rows of {} values, wanted a multiple of {}",
                             tensor.name, tensor.shape[0], kernels::weight_block_values(*type)));
    }
    const std::size_t rows = tensor.shape.size() > 1 ? std::size_t(tensor.shape[1]) : 1;
    const std::size_t wanted = kernels::weight_row_bytes(*type, tensor.shape[0]) * rows;
    if (tensor.data.size() != wanted) {
      return bad(ErrorCode::kInvalidInput, fmt::format("tensor {} has {} bytes, wanted {}",
                                                       tensor.name, tensor.data.size(), wanted));
    }
    return *type;
  }

  Status vector(const std::string& name, std::int64_t n, bool required, std::vector<float>& out) {
    if (!required && !file_.find(name)) return Ok{};
    auto tensor = find(name, {n});
    if (!tensor) return tensor.error();
    auto type = type_of(**tensor);
    if (!type) return type.error();
    out.resize(std::size_t(n));
    kernels::dequantize_file_row(*type, (*tensor)->data.data(), n, out.data());
    consumed(**tensor);
    return Ok{};
  }

  Status matrix(const std::string& name, std::int64_t n_out, std::int64_t n_in, Matrix& out) {
    auto tensor = find(name, {n_in, n_out});
    if (!tensor) return tensor.error();
    auto type = type_of(**tensor);
    if (!type) return type.error();
    const std::size_t bytes = kernels::packed_bytes(*type, n_out, n_in);
    out.buffer = arena_.take(bytes);
    if (!out.buffer.data()) {
      return bad(ErrorCode::kOutOfRange,
                 fmt::format("no memory for tensor {} ({} bytes)", name, bytes));
    }
    out.packed = {*type, kernels::Device::kCpu, n_out, n_in, out.buffer.data(), bytes};
    out.file_bytes = (*tensor)->data.size();
    const std::size_t row_bytes = kernels::weight_row_bytes(*type, n_in);
    const std::byte* source = (*tensor)->data.data();
    pool_.ranges(n_out, kernels::kPackRows, [&](std::int64_t begin, std::int64_t end, int) {
      // In strips, so that the file's pages and the packed pages are both touched in order.
      constexpr std::int64_t kStrip = 16 * kernels::kPackRows;
      for (std::int64_t row = begin; row < end; row += kStrip) {
        const std::int64_t n = std::min(kStrip, end - row);
        kernels::pack_rows(out.packed, row, n, source + std::size_t(row) * row_bytes);
      }
    });
    consumed(**tensor);
    return Ok{};
  }

 private:
  Error bad(ErrorCode code, std::string message) const {
    return Error{code, fmt::format("{}: {}", file_.path(), message)};
  }
  void consumed(const GgufTensor& tensor) {
    file_.release(tensor);
    done_ += tensor.data.size();
    if (progress_) progress_(total_ ? double(done_) / double(total_) : 1.0);
  }

  const GgufFile& file_;
  kernels::ThreadPool& pool_;
  // Packed, a matrix takes at most a sixteenth more than in the file.
  WeightArena arena_{file_.file_bytes() + file_.file_bytes() / 16};
  const std::function<void(double)>& progress_;
  std::size_t total_ = 0, done_ = 0;
};

}  // namespace

Result<ModelWeights> load_weights(const GgufFile& file, const ModelConfig& config,
                                  kernels::ThreadPool& pool,
                                  const std::function<void(double)>& progress) {
  Loader loader(file, pool, progress);
  ModelWeights w;
  const std::int64_t q_width = std::int64_t(config.n_heads) * config.head_dim;
  const std::int64_t kv_width = std::int64_t(config.n_kv_heads) * config.head_dim;
  const std::int64_t hidden = config.hidden;

  if (config.tied_output) {
    if (auto s = loader.matrix("token_embd.weight", config.n_vocab, hidden, w.output); !s)
      return s.error();
  } else {
    if (auto s = loader.matrix("output.weight", config.n_vocab, hidden, w.output); !s)
      return s.error();
    auto embedding = loader.find("token_embd.weight", {hidden, config.n_vocab});
    if (!embedding) return embedding.error();
    auto type = loader.type_of(**embedding);
    if (!type) return type.error();
    w.embedding_tensor = *embedding;
    w.embedding_type = *type;
  }
  if (auto s = loader.vector("output_norm.weight", hidden, true, w.output_norm); !s)
    return s.error();
  if (auto s = loader.vector("rope_freqs.weight", config.rotary_dim / 2, false,
                             w.rope_frequency_factors);
      !s) {
    return s.error();
  }
  w.layers.resize(std::size_t(config.n_layers));
  for (int i = 0; i < config.n_layers; ++i) {
    LayerWeights& layer = w.layers[std::size_t(i)];
    struct M {
      const char* name;
      std::int64_t n_out, n_in;
      Matrix* out;
    };
    for (const M& m :
         {M{"attn_q", q_width, hidden, &layer.q}, M{"attn_k", kv_width, hidden, &layer.k},
          M{"attn_v", kv_width, hidden, &layer.v},
          M{"attn_output", hidden, q_width, &layer.attention_output},
          M{"ffn_gate", config.ffn, hidden, &layer.gate},
          M{"ffn_up", config.ffn, hidden, &layer.up},
          M{"ffn_down", hidden, config.ffn, &layer.down}}) {
      if (auto s =
              loader.matrix(fmt::format("blk.{}.{}.weight", i, m.name), m.n_out, m.n_in, *m.out);
          !s)
        return s.error();
    }
    struct V {
      const char* name;
      std::int64_t n;
      bool required;
      std::vector<float>* out;
    };
    const bool biased = config.architecture == "qwen2";
    for (const V& v : {V{"attn_norm.weight", hidden, true, &layer.attention_norm},
                       V{"ffn_norm.weight", hidden, true, &layer.ffn_norm},
                       V{"attn_q.bias", q_width, biased, &layer.q_bias},
                       V{"attn_k.bias", kv_width, biased, &layer.k_bias},
                       V{"attn_v.bias", kv_width, biased, &layer.v_bias},
                       V{"attn_output.bias", hidden, false, &layer.attention_output_bias}}) {
      if (auto s = loader.vector(fmt::format("blk.{}.{}", i, v.name), v.n, v.required, *v.out); !s)
        return s.error();
    }
  }
  return w;
}

}  // namespace foretoken
