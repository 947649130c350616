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

Error TensorLoader::bad(ErrorCode code, const std::string& message) const {
  return Error{code, fmt::format("{}: {}", file_.path(), message)};
}

void TensorLoader::consumed(const GgufTensor& tensor) {
  file_.release(tensor);
  done_ += tensor.data.size();
  if (progress_) progress_(total_ ? double(done_) / double(total_) : 1.0);
}

Result<const GgufTensor*> TensorLoader::find(const std::string& name,
                                             std::vector<std::int64_t> shape) {
  const GgufTensor* tensor = file_.find(name);
  if (!tensor) return bad(ErrorCode::kInvalidInput, fmt::format("tensor {} is missing", name));
  if (tensor->shape != shape) {
    return bad(ErrorCode::kInvalidInput,
               fmt::format("tensor {} has shape [{}], wanted [{}]", name,
                           fmt::join(tensor->shape, ", "), fmt::join(shape, ", ")));
  }
  claim(name);
  return tensor;
}

Result<WeightType> TensorLoader::type_of(const GgufTensor& tensor) const {
  const auto type = weight_type_of(tensor.ggml_type);
  if (!type) {
    std::vector<const char*> known;
    for (const kernels::WeightFormat& format : kernels::kWeightFormats)
      if (format.ggml_type >= 0) known.push_back(format.name);
    return bad(ErrorCode::kUnsupported,
               fmt::format("tensor {} has type {}, wanted one of {}", tensor.name,
                           ggml_type_name(tensor.ggml_type), fmt::join(known, ", ")));
  }
  if (tensor.shape[0] % kernels::weight_block_values(*type) != 0) {
    return bad(ErrorCode::kInvalidInput,
               fmt::format("tensor {} has rows of {} values, wanted a multiple of {}", tensor.name,
                           tensor.shape[0], kernels::weight_block_values(*type)));
  }
  const std::size_t rows = tensor.shape.size() > 1 ? std::size_t(tensor.shape[1]) : 1;
  const std::size_t wanted = kernels::weight_row_bytes(*type, tensor.shape[0]) * rows;
  if (tensor.data.size() != wanted) {
    return bad(ErrorCode::kInvalidInput, fmt::format("tensor {} has {} bytes, wanted {}",
                                                     tensor.name, tensor.data.size(), wanted));
  }
  return *type;
}

Status TensorLoader::vector(const std::string& name, std::int64_t n, Presence presence,
                            std::vector<float>& out) {
  if (presence == Presence::kNone) return Ok{};
  if (presence == Presence::kOptional && !file_.find(name)) return Ok{};
  auto tensor = find(name, {n});
  if (!tensor) return tensor.error();
  auto type = type_of(**tensor);
  if (!type) return type.error();
  out.resize(std::size_t(n));
  kernels::dequantize_file_row(*type, (*tensor)->data.data(), n, out.data());
  consumed(**tensor);
  return Ok{};
}

Status TensorLoader::matrix(const std::string& name, std::int64_t n_out, std::int64_t n_in,
                            Matrix& out) {
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

Status TensorLoader::linear(const std::string& name, std::int64_t n_out, std::int64_t n_in,
                            Presence bias, Linear& out) {
  if (auto s = matrix(name + ".weight", n_out, n_in, out.weight); !s) return s;
  return vector(name + ".bias", n_out, bias, out.bias);
}

Result<const GgufTensor*> TensorLoader::rows(const std::string& name, std::int64_t n_rows,
                                             std::int64_t width, WeightType& type) {
  auto tensor = find(name, {width, n_rows});
  if (!tensor) return tensor;
  auto found = type_of(**tensor);
  if (!found) return found.error();
  type = *found;
  return tensor;
}

Status TensorLoader::finish(const std::vector<std::string>& unused) const {
  for (const GgufTensor& tensor : file_.tensors()) {
    if (claimed_.contains(tensor.name)) continue;
    const bool known = std::ranges::any_of(
        unused, [&](const std::string& prefix) { return tensor.name.starts_with(prefix); });
    if (!known) {
      return bad(ErrorCode::kUnsupported,
                 fmt::format("tensor {} [{}] is none that the architecture has: not understood, "
                             "and may change what the model computes",
                             tensor.name, fmt::join(tensor.shape, ", ")));
    }
  }
  return Ok{};
}

}  // namespace foretoken
