#include "runtime/files/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <boost/json.hpp>
#include <cassert>
#include <cstring>

#include "runtime/files/mapped_file.h"
#include "runtime/unicode/unicode.h"

namespace foretoken {
namespace {

namespace json = boost::json;

static_assert(std::endian::native == std::endian::little,
              "safetensors are read in place, little-endian");

// A head has some twenty tensors, the largest published shards some thousands of a hundred bytes
// of header each.
constexpr std::uint64_t kMaxHeaderBytes = std::uint64_t{16} << 20;
constexpr std::size_t kMaxSafetensors = 65536, kMaxRank = 8, kMaxNameBytes = 512;
constexpr std::uint64_t kMaxElements = std::uint64_t{1} << 48;

struct TypeInfo {
  const char* name;
  std::size_t bytes;
};
constexpr std::array<TypeInfo, 15> kTypes = {{{"BOOL", 1},
                                              {"U8", 1},
                                              {"I8", 1},
                                              {"F8_E5M2", 1},
                                              {"F8_E4M3", 1},
                                              {"I16", 2},
                                              {"U16", 2},
                                              {"F16", 2},
                                              {"BF16", 2},
                                              {"I32", 4},
                                              {"U32", 4},
                                              {"F32", 4},
                                              {"F64", 8},
                                              {"I64", 8},
                                              {"U64", 8}}};

std::optional<SafetensorType> type_of(std::string_view name) {
  for (std::size_t i = 0; i < kTypes.size(); ++i)
    if (name == kTypes[i].name) return SafetensorType(i);
  const auto weight = kernels::weight_type_of_safetensors(name);
  return weight ? std::optional(SafetensorType(kTypes.size() + std::size_t(*weight)))
                : std::nullopt;
}

std::optional<std::uint64_t> unsigned_of(const json::value& value) {
  if (value.is_uint64()) return value.get_uint64();
  if (value.is_int64() && value.get_int64() >= 0) return std::uint64_t(value.get_int64());
  return std::nullopt;
}

class MappedSafetensors final : public SafetensorsFile {
 public:
  MappedSafetensors(MappedFile file, std::string path)
      : file_(std::move(file)), bytes_(file_.bytes()), path_(std::move(path)) {}
  MappedSafetensors(std::span<const std::byte> bytes, std::string path)
      : bytes_(bytes), path_(std::move(path)) {}

  Status parse_all() {
    if (bytes_.size() < 8) return error("{} bytes found, at least 8 wanted", bytes_.size());
    std::uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes_.data(), 8);
    if (header_bytes > kMaxHeaderBytes || header_bytes > bytes_.size() - 8) {
      return error("header length: {} found, at most {} of {} bytes wanted", header_bytes,
                   kMaxHeaderBytes, bytes_.size() - 8);
    }
    json::parse_options options;
    options.max_depth = 4;
    json::error_code code;
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + 8,
                                std::size_t(header_bytes));
    const json::value header = json::parse(text, code, {}, options);
    if (code || !header.is_object())
      return error("header: {}", code ? code.message() : "not a JSON object");
    const auto region = bytes_.subspan(8 + std::size_t(header_bytes));
    if (header.get_object().size() > kMaxSafetensors)
      return error("header: {} keys found, at most {} wanted", header.get_object().size(),
                   kMaxSafetensors);
    for (const auto& [key, value] : header.get_object()) {
      if (Status s = key == "__metadata__" ? read_metadata(value) : read_tensor(key, value, region);
          !s)
        return s;
    }
    return place(region);
  }

  const Safetensor* find(std::string_view name) const override {
    const auto at = std::ranges::find(tensors_, name, &Safetensor::name);
    return at == tensors_.end() ? nullptr : &*at;
  }
  const std::vector<Safetensor>& tensors() const override { return tensors_; }
  const SafetensorsMetadata& metadata() const override { return metadata_; }
  const std::string& path() const override { return path_; }
  std::uint64_t file_bytes() const override { return bytes_.size(); }

 private:
  template <class... Args>
  Error error(fmt::format_string<Args...> format, Args&&... args) const {
    return {ErrorCode::kInvalidInput,
            fmt::format("{}: {}", path_, fmt::format(format, std::forward<Args>(args)...))};
  }

  Status read_metadata(const json::value& value) {
    if (!value.is_object()) return error("__metadata__: an object of strings wanted");
    for (const auto& [key, entry] : value.get_object()) {
      if (!entry.is_string())
        return error("__metadata__.{}: a string wanted", printable(std::string_view(key)));
      metadata_.emplace(key, entry.get_string());
    }
    return Ok{};
  }

  Status read_tensor(std::string_view name, const json::value& value,
                     std::span<const std::byte> region) {
    const std::string shown = printable(name.substr(0, 100));
    if (name.empty() || name.size() > kMaxNameBytes)
      return error("tensor name of {} bytes found, 1 to {} wanted", name.size(), kMaxNameBytes);
    const json::object* info = value.if_object();
    if (!info) return error("tensor {}: an object wanted", shown);
    for (const auto& [key, unused] : *info) {
      if (key != "dtype" && key != "shape" && key != "data_offsets")
        return error("tensor {}: key {} is not known", shown,
                     printable(std::string_view(key).substr(0, 100)));
    }
    Safetensor tensor;
    tensor.name = name;
    const json::value* dtype = info->if_contains("dtype");
    const auto type =
        dtype && dtype->is_string() ? type_of(std::string_view(dtype->get_string())) : std::nullopt;
    if (!type)
      return error("tensor {}: dtype: {} found, a known one wanted", shown,
                   dtype ? printable(json::serialize(*dtype).substr(0, 100)) : "nothing");
    tensor.type = *type;
    const json::value* shape = info->if_contains("shape");
    if (!shape || !shape->is_array() || shape->get_array().size() > kMaxRank)
      return error("tensor {}: shape: at most {} extents wanted", shown, kMaxRank);
    std::uint64_t elements = 1;
    for (const json::value& entry : shape->get_array()) {
      const auto extent = unsigned_of(entry);
      if (!extent || (*extent && elements > kMaxElements / *extent))
        return error("tensor {}: shape: {} found, extents of at most 2^48 elements wanted", shown,
                     json::serialize(*shape).substr(0, 100));
      elements *= *extent;
      tensor.shape.push_back(std::int64_t(*extent));
    }
    const json::value* offsets = info->if_contains("data_offsets");
    const json::array* pair = offsets ? offsets->if_array() : nullptr;
    const auto begin = pair && pair->size() == 2 ? unsigned_of((*pair)[0]) : std::nullopt;
    const auto end = pair && pair->size() == 2 ? unsigned_of((*pair)[1]) : std::nullopt;
    if (!begin || !end || *begin > *end || *end > region.size())
      return error("tensor {}: data_offsets: {} found, two numbers within {} bytes wanted", shown,
                   offsets ? json::serialize(*offsets).substr(0, 100) : "nothing", region.size());
    const auto wanted = safetensor_bytes(*type, elements);
    if (!wanted)
      return error("tensor {}: {} [{}] fills no whole number of blocks", shown,
                   safetensor_type_name(*type), fmt::join(tensor.shape, ", "));
    if (*end - *begin != *wanted)
      return error("tensor {}: {} bytes found, {} [{}] wants {}", shown, *end - *begin,
                   safetensor_type_name(*type), fmt::join(tensor.shape, ", "), *wanted);
    tensor.data = region.subspan(std::size_t(*begin), *wanted);
    tensors_.push_back(std::move(tensor));
    return Ok{};
  }

  // No byte belongs to no tensor or to two. (A name that is given twice keeps its last entry when
  // JSON is read: the first one's bytes then belong to nobody.)
  Status place(std::span<const std::byte> region) {
    std::ranges::stable_sort(
        tensors_, {}, [](const Safetensor& t) { return std::pair(t.data.data(), t.data.size()); });
    const std::byte* at = region.data();
    for (const Safetensor& tensor : tensors_) {
      if (tensor.data.data() != at)
        return error("tensor {}: data_offsets: begins at {}, wanted {}, where the one before ends",
                     printable(tensor.name.substr(0, 100)), tensor.data.data() - region.data(),
                     at - region.data());
      at += tensor.data.size();
    }
    if (at != region.data() + region.size())
      return error("{} bytes after the last tensor", region.data() + region.size() - at);
    return Ok{};
  }

  MappedFile file_;  // none for bytes in memory
  std::span<const std::byte> bytes_;
  std::string path_;
  std::vector<Safetensor> tensors_;
  SafetensorsMetadata metadata_;
};

Result<std::unique_ptr<SafetensorsFile>> finish(std::unique_ptr<MappedSafetensors> file) {
  if (Status status = file->parse_all(); !status) return status.error();
  return std::unique_ptr<SafetensorsFile>(std::move(file));
}

}  // namespace

std::optional<kernels::WeightType> safetensor_weight_type(SafetensorType type) {
  if (std::size_t(type) >= kTypes.size())
    return kernels::WeightType(std::size_t(type) - kTypes.size());
  return kernels::weight_type_of_safetensors(kTypes[std::size_t(type)].name);
}

const char* safetensor_type_name(SafetensorType type) {
  if (std::size_t(type) < kTypes.size()) return kTypes[std::size_t(type)].name;
  return kernels::weight_format(*safetensor_weight_type(type)).safetensors.data();
}
std::size_t safetensor_element_bytes(SafetensorType type) {
  assert(std::size_t(type) < kTypes.size());
  return kTypes[std::size_t(type)].bytes;
}
std::optional<std::size_t> safetensor_bytes(SafetensorType type, std::size_t n_elements) {
  if (std::size_t(type) < kTypes.size()) return n_elements * kTypes[std::size_t(type)].bytes;
  const kernels::WeightType weight = *safetensor_weight_type(type);
  if (n_elements % std::size_t(kernels::weight_block_values(weight)) != 0) return std::nullopt;
  return kernels::weight_row_bytes(weight, std::int64_t(n_elements));
}

Result<std::unique_ptr<SafetensorsFile>> SafetensorsFile::open(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  return finish(std::make_unique<MappedSafetensors>(std::move(*file), path));
}

Result<std::unique_ptr<SafetensorsFile>> SafetensorsFile::parse(std::span<const std::byte> bytes,
                                                                std::string name) {
  return finish(std::make_unique<MappedSafetensors>(bytes, std::move(name)));
}

std::vector<std::byte> write_safetensors(std::span<const Safetensor> tensors,
                                         const SafetensorsMetadata& metadata) {
  std::vector<const Safetensor*> order;
  for (const Safetensor& tensor : tensors) order.push_back(&tensor);
  // Wide elements first, so that every tensor is aligned to its own.
  std::ranges::sort(order, [](const Safetensor* a, const Safetensor* b) {
    return a->type != b->type ? a->type > b->type : a->name < b->name;
  });
  json::object header;
  if (!metadata.empty()) {
    json::object entries;
    for (const auto& [key, value] : metadata) entries[key] = value;
    header["__metadata__"] = std::move(entries);
  }
  std::uint64_t at = 0;
  for (const Safetensor* tensor : order) {
    std::size_t elements = 1;
    for (const std::int64_t extent : tensor->shape) elements *= std::size_t(extent);
    const std::uint64_t bytes = tensor->data.size();
    assert(safetensor_bytes(tensor->type, elements) == bytes);
    header[tensor->name] = {{"dtype", safetensor_type_name(tensor->type)},
                            {"shape", json::array(tensor->shape.begin(), tensor->shape.end())},
                            {"data_offsets", {at, at + bytes}}};
    at += bytes;
  }
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t header_bytes = text.size();
  std::vector<std::byte> out(8 + text.size() + at);
  std::memcpy(out.data(), &header_bytes, 8);
  std::memcpy(out.data() + 8, text.data(), text.size());
  std::byte* to = out.data() + 8 + text.size();
  for (const Safetensor* tensor : order) {
    if (!tensor->data.empty()) std::memcpy(to, tensor->data.data(), tensor->data.size());
    to += tensor->data.size();
  }
  return out;
}

}  // namespace foretoken
