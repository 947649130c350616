#include "runtime/model/tensor_loader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace foretoken {

using kernels::WeightType;

// (Packed, a matrix takes at most a sixteenth more than in the file.)
TensorLoader::TensorLoader(const GgufFile& file, kernels::ThreadPool& pool,
                           const std::function<void(double)>& progress)
    : file_(file),
      pool_(pool),
      progress_(progress),
      arena_(file.file_bytes() + file.file_bytes() / 16) {
  for (const GgufTensor& t : file.tensors()) total_ += t.data.size();
}

void TensorLoader::consumed(const GgufTensor& tensor) {
  file_.release(tensor);
  done_ += tensor.data.size();
  if (progress_) progress_(total_ ? double(done_) / double(total_) : 1.0);
}

Result<TensorLoader::Found> TensorLoader::find(const std::string& name,
                                               const std::vector<std::int64_t>& shape) {
  const GgufTensor* tensor = file_.find(name);
  if (!tensor) return bad(ErrorCode::kInvalidInput, "tensor {} is missing", name);
  if (tensor->shape != shape) {
    return bad(ErrorCode::kInvalidInput, "tensor {} has shape [{}], wanted [{}]", name,
               fmt::join(tensor->shape, ", "), fmt::join(shape, ", "));
  }
  claim(name);
  auto type = type_of(*tensor);
  if (!type) return type.error();
  return Found{tensor, *type};
}

Result<WeightType> TensorLoader::type_of(const GgufTensor& tensor) const {
  const auto type = weight_type_of(tensor.ggml_type);
  if (!type) {
    std::vector<const char*> known;
    for (const kernels::WeightFormat& format : kernels::kWeightFormats)
      if (format.ggml_type >= 0) known.push_back(format.name);
    return bad(ErrorCode::kUnsupported, "tensor {} has type {}, wanted one of {}", tensor.name,
               ggml_type_name(tensor.ggml_type), fmt::join(known, ", "));
  }
  if (tensor.shape[0] % kernels::weight_block_values(*type) != 0) {
    return bad(ErrorCode::kInvalidInput, "tensor {} has rows of {} values, wanted a multiple of {}",
               tensor.name, tensor.shape[0], kernels::weight_block_values(*type));
  }
  const std::size_t rows = tensor.shape.size() > 1 ? std::size_t(tensor.shape[1]) : 1;
  const std::size_t wanted = kernels::weight_row_bytes(*type, tensor.shape[0]) * rows;
  if (tensor.data.size() != wanted) {
    return bad(ErrorCode::kInvalidInput, "tensor {} has {} bytes, wanted {}", tensor.name,
               tensor.data.size(), wanted);
  }
  return *type;
}

Status TensorLoader::vector(const std::string& name, std::int64_t n, Presence presence,
                            std::vector<float>& out) {
  if (presence == Presence::kNone) return Ok{};
  if (presence == Presence::kOptional && !file_.find(name)) return Ok{};
  auto found = find(name, {n});
  if (!found) return found.error();
  out.resize(std::size_t(n));
  kernels::dequantize_file_row(found->type, found->tensor->data.data(), n, out.data());
  consumed(*found->tensor);
  return Ok{};
}

Status TensorLoader::matrix(const std::string& name, std::int64_t n_out, std::int64_t n_in,
                            Matrix& out) {
  auto found = find(name, {n_in, n_out});
  if (!found) return found.error();
  if (!out.allocate(found->type, n_out, n_in, &arena_)) {
    return bad(ErrorCode::kOutOfRange, "no memory for tensor {} ({} bytes)", name,
               out.packed.bytes);
  }
  const std::size_t row_bytes = kernels::weight_row_bytes(found->type, n_in);
  const std::byte* source = found->tensor->data.data();
  pool_.ranges(n_out, kernels::kPackRows, [&](std::int64_t begin, std::int64_t end, int) {
    // In strips, so that the file's pages and the packed pages are both touched in order.
    constexpr std::int64_t kStrip = 16 * kernels::kPackRows;
    for (std::int64_t row = begin; row < end; row += kStrip) {
      const std::int64_t n = std::min(kStrip, end - row);
      kernels::pack_rows(out.packed, row, n, source + std::size_t(row) * row_bytes);
    }
  });
  consumed(*found->tensor);
  return Ok{};
}

Status TensorLoader::linear(const std::string& name, std::int64_t n_out, std::int64_t n_in,
                            Presence bias, Linear& out) {
  if (auto s = matrix(name + ".weight", n_out, n_in, out.weight); !s) return s;
  return vector(name + ".bias", n_out, bias, out.bias);
}

Status TensorLoader::finish(const std::vector<std::string>& unused) const {
  for (const GgufTensor& tensor : file_.tensors()) {
    if (claimed_.contains(tensor.name)) continue;
    const bool known = std::ranges::any_of(
        unused, [&](const std::string& prefix) { return tensor.name.starts_with(prefix); });
    if (!known) {
      return bad(ErrorCode::kUnsupported,
                 "tensor {} [{}] is none that the architecture has: not understood, "
                 "and may change what the model computes",
                 tensor.name, fmt::join(tensor.shape, ", "));
    }
  }
  return Ok{};
}

}  // namespace foretoken
