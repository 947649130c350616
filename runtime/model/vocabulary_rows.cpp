#include "runtime/model/vocabulary_rows.h"

#include <cassert>
#include <cstring>

#include "foretoken/kernels/convert.h"
#include "foretoken/protocol/failure.h"

namespace foretoken {

Result<std::shared_ptr<const VocabularyRows>> VocabularyRows::open(const std::string& path) {
  auto file = GgufFile::open(path);
  if (!file) return file.error();
  std::shared_ptr<VocabularyRows> rows(new VocabularyRows);
  rows->file_ = std::move(*file);
  return bound(rows, *rows->file_);
}

Result<std::shared_ptr<const VocabularyRows>> VocabularyRows::of(
    std::shared_ptr<const Model> model) {
  std::shared_ptr<VocabularyRows> rows(new VocabularyRows);
  rows->model_ = std::move(model);
  return bound(rows, rows->model_->file());
}

Result<std::shared_ptr<const VocabularyRows>> VocabularyRows::of(const GgufFile& file) {
  return bound(std::shared_ptr<VocabularyRows>(new VocabularyRows), file);
}

Result<std::shared_ptr<const VocabularyRows>> VocabularyRows::bound(
    std::shared_ptr<VocabularyRows> rows, const GgufFile& file) {
  if (auto s = rows->bind(file); !s) return s.error();
  return std::shared_ptr<const VocabularyRows>(std::move(rows));
}

Status VocabularyRows::bind(const GgufFile& file) {
  auto config = read_model_config(file);
  if (!config) return config.error();
  hidden_ = config->hidden;
  n_vocab_ = config->n_vocab;
  n_layers_ = model_ ? model_->config().n_layers : config->n_layers;
  const auto find = [&](const char* name, Rows& out) -> Status {
    const auto bad = [&]<class... Args>(ErrorCode code, fmt::format_string<Args...> text,
                                        Args&&... args) {
      return failure(code, "{}: tensor {} {}", file.path(), name,
                     fmt::format(text, std::forward<Args>(args)...));
    };
    out.tensor = file.find(name);
    if (!out.tensor) return bad(ErrorCode::kInvalidInput, "is missing");
    if (out.tensor->shape != std::vector<std::int64_t>{hidden_, n_vocab_})
      return bad(ErrorCode::kInvalidInput, "has another shape than [{}, {}]", hidden_, n_vocab_);
    const auto type = weight_type_of(out.tensor->ggml_type);
    if (!type || hidden_ % kernels::weight_block_values(*type) != 0) {
      return bad(ErrorCode::kUnsupported, "of type {} cannot be read",
                 ggml_type_name(out.tensor->ggml_type));
    }
    out.type = *type;
    out.row_bytes = kernels::weight_row_bytes(*type, hidden_);
    if (out.tensor->data.size() != out.row_bytes * std::size_t(n_vocab_)) {
      return bad(ErrorCode::kInvalidInput, "has {} bytes, wanted {}", out.tensor->data.size(),
                 out.row_bytes * std::size_t(n_vocab_));
    }
    return Ok{};
  };
  if (auto s = find("token_embd.weight", embedding_); !s) return s;
  if (auto s = find(config->tied_output ? "token_embd.weight" : "output.weight", output_); !s)
    return s;
  step_bytes_ = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    if (&tensor != embedding_.tensor || config->tied_output) step_bytes_ += tensor.data.size();
  }
  return Ok{};
}

void VocabularyRows::embedding(TokenId token, float* out) const {
  assert(token >= 0 && token < n_vocab_);
  if (model_) {
    model_->embedding(token, out);
  } else {
    kernels::dequantize_file_row(embedding_.type, embedding_.row(token), hidden_, out);
  }
}

kernels::WeightType VocabularyRows::head_type() const {
  const bool floats =
      kernels::weight_format(output_.type).activations == kernels::ActivationForm::kFloat;
  return floats && hidden_ % kernels::weight_block_values(kernels::WeightType::kQ8_0) == 0
             ? kernels::WeightType::kQ8_0
             : output_.type;
}

std::size_t VocabularyRows::output_row_bytes() const {
  return kernels::weight_row_bytes(head_type(), hidden_);
}

void VocabularyRows::head_row(TokenId token, std::byte* out) const {
  if (head_type() == output_.type) {
    std::memcpy(out, output_.row(token), output_.row_bytes);
    return;
  }
  std::vector<float> values(static_cast<std::size_t>(hidden_));
  kernels::dequantize_file_row(output_.type, output_.row(token), hidden_, values.data());
  kernels::quantize_q8_0(values.data(), hidden_, out);
}

void VocabularyRows::output(TokenId token, float* out) const {
  assert(token >= 0 && token < n_vocab_);
  std::vector<std::byte> row(output_row_bytes());
  head_row(token, row.data());
  kernels::dequantize_file_row(head_type(), row.data(), hidden_, out);
}

Result<Matrix> VocabularyRows::pack_output_rows(std::span<const TokenId> ids) const {
  Matrix out;
  assert(ids.size() % kernels::kPackRows == 0);
  if (!out.allocate(head_type(), std::ssize(ids), hidden_))
    return failure(ErrorCode::kOutOfRange, "no memory for {} output rows", ids.size());
  out.pack([&](std::int64_t row, std::byte* to) { head_row(ids[std::size_t(row)], to); });
  return out;
}

}  // namespace foretoken
