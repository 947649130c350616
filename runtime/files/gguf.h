// A GGUF v3 file, mapped read-only and parsed as hostile input: every offset, count, type, string
// and array is checked against the file's length before use. Owner: whoever opened it (the model
// loader). Thread-safe once open. Tensor bytes can be released page by page after repacking.
// Invariants of an open file: keys and tensor names are unique; tensors of known type lie inside
// the file, aligned, and do not overlap; data.size() = rows * shape[0] / block elements * block
// bytes. The one thing that cannot be checked: another process that shortens the file while it is
// mapped (SIGBUS).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken {

// ggml's tensor type numbers that foretoken knows by name; others are kept as their number and
// refused by name only when such a tensor is needed.
struct GgufTensor {
  std::string name;
  std::vector<std::int64_t> shape;  // ggml order: shape[0] is the contiguous (input) dimension
  std::uint32_t ggml_type = 0;
  std::span<const std::byte> data;  // whole rows, length checked; empty when the type is unknown
};

class GgufFile {
 public:
  static Result<std::unique_ptr<GgufFile>> open(const std::string& path);
  // The same parser over bytes in memory, which must outlive the result. `name` stands for the path
  // in messages. For tests and fuzzing; release() does nothing.
  static Result<std::unique_ptr<GgufFile>> parse(std::span<const std::byte> bytes,
                                                 std::string name);
  virtual ~GgufFile() = default;

  // Metadata. Numeric getters convert between integer widths when the value fits; nullopt: absent
  // or of another type.
  virtual std::optional<std::uint64_t> get_uint(std::string_view key) const = 0;
  virtual std::optional<double> get_float(std::string_view key) const = 0;
  virtual std::optional<bool> get_bool(std::string_view key) const = 0;
  virtual std::optional<std::string_view> get_string(std::string_view key) const = 0;
  virtual std::optional<std::vector<std::string_view>> get_strings(std::string_view key) const = 0;
  virtual std::optional<std::vector<std::int64_t>> get_ints(std::string_view key) const = 0;
  virtual std::vector<std::string> keys() const = 0;
  virtual bool contains(std::string_view key) const = 0;         // of whatever type
  virtual std::string describe(std::string_view key) const = 0;  // for `inspect`: short, escaped

  virtual const GgufTensor* find(std::string_view name) const = 0;
  virtual const std::vector<GgufTensor>& tensors() const = 0;
  virtual void release(
      const GgufTensor& tensor) const = 0;  // madvise: these pages are not needed again
  virtual const std::string& path() const = 0;
  virtual std::uint64_t file_bytes() const = 0;
};

// "Q4_K" for 12, "type 99" for an unknown number.
std::string ggml_type_name(std::uint32_t ggml_type);

// A block of `elements` consecutive values takes `bytes`; nullopt for an unknown number.
struct GgmlBlock {
  std::int64_t elements = 0;
  std::int64_t bytes = 0;
};
std::optional<GgmlBlock> ggml_block(std::uint32_t ggml_type);

}  // namespace foretoken
