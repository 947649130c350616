// A safetensors file, mapped read-only and parsed as hostile input, and its writer. Layout: eight
// bytes of header length, a JSON object {name: {dtype, shape, data_offsets}}, tensor bytes.
// Owner: whoever opened it. Thread-safe once open.
// Invariants of an open file: names are unique; data.size() = product of shape * element bytes;
// the tensors' bytes lie without gap or overlap and end where the file does, so that nothing is in
// the file that no tensor names. As with GGUF, a process that shortens the file while it is mapped
// cannot be guarded against (SIGBUS).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/kernels/weight_type.h"
#include "foretoken/protocol/result.h"

namespace foretoken {

// Beyond these a file may hold what the kernels' weight types are called there (weight_type.h): a
// row there gives its dtype a number after kU64.
enum class SafetensorType : std::uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64
};
const char* safetensor_type_name(SafetensorType type);  // "BF16"
// Of a type above. Of any type: none where n_elements do not fill its blocks.
std::size_t safetensor_element_bytes(SafetensorType type);
std::optional<std::size_t> safetensor_bytes(SafetensorType type, std::size_t n_elements);
// What the kernels multiply its values with, if they do.
std::optional<kernels::WeightType> safetensor_weight_type(SafetensorType type);

struct Safetensor {
  std::string name;
  SafetensorType type = SafetensorType::kF32;
  std::vector<std::int64_t> shape;  // row-major; empty: a scalar
  std::span<const std::byte> data;
};
using SafetensorsMetadata = std::map<std::string, std::string>;

class SafetensorsFile {
 public:
  static Result<std::unique_ptr<SafetensorsFile>> open(const std::string& path);
  // The same parser over bytes in memory, which must outlive the result. `name` stands for the path
  // in messages.
  static Result<std::unique_ptr<SafetensorsFile>> parse(std::span<const std::byte> bytes,
                                                        std::string name);
  virtual ~SafetensorsFile() = default;
  virtual const Safetensor* find(std::string_view name) const = 0;
  virtual const std::vector<Safetensor>& tensors() const = 0;  // by offset
  virtual const SafetensorsMetadata& metadata() const = 0;     // "__metadata__"
  virtual const std::string& path() const = 0;
  virtual std::uint64_t file_bytes() const = 0;
};

// The file's bytes: tensors as the format's own library lays them out, widest elements first, then
// by name; the header padded with spaces so that they begin at a multiple of eight.
// Each data.size() must be what type and shape say; names unique.
std::vector<std::byte> write_safetensors(std::span<const Safetensor> tensors,
                                         const SafetensorsMetadata& metadata = {});

}  // namespace foretoken
