#include "runtime/files/gguf.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>

#include "runtime/files/mapped_file.h"

namespace foretoken {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place, little-endian");

constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr std::uint32_t kVersion = 3;
// Limits on counts, so that a hostile header costs nothing before it is found out. The largest
// published models have about 60 metadata keys and 2,000 tensors; a key is at most 65,535 bytes and
// a tensor name at most 64 by the format's specification.
constexpr std::uint64_t kMaxKeys = 4096;
constexpr std::uint64_t kMaxTensors = 65536;
constexpr std::uint64_t kMaxKeyBytes = 65535;
constexpr std::uint64_t kMaxTensorNameBytes = 64;
constexpr std::uint32_t kMaxDimensions = 4;
constexpr std::uint64_t kMaxDimension = std::uint64_t{1} << 40;
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxAlignment = 1 << 20;

enum class ValueType : std::uint32_t {
  kUint8 = 0,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};
constexpr std::uint32_t kValueTypes = 13;
constexpr std::array<const char*, kValueTypes> kValueTypeNames = {
    "uint8", "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
    "bool",  "string", "array",  "uint64", "int64",  "float64"};

// 0 for the types without a fixed size.
constexpr std::size_t size_of(ValueType type) {
  constexpr std::array<std::size_t, kValueTypes> sizes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return sizes[std::size_t(type)];
}

struct Value {
  ValueType type = ValueType::kUint8;  // of the elements, when it is an array
  bool array = false;
  std::uint64_t count = 1;
  std::span<const std::byte> bytes;  // the elements; a string without its length prefix
};

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Calls visit(integer) with the value's own width; false if it is no integer.
template <class Visit>
bool visit_integer(ValueType type, const std::byte* at, Visit visit) {
  const auto as = [&](auto width) {
    visit(load<decltype(width)>(at));
    return true;
  };
  switch (type) {
    case ValueType::kUint8:
      return as(std::uint8_t{});
    case ValueType::kInt8:
      return as(std::int8_t{});
    case ValueType::kUint16:
      return as(std::uint16_t{});
    case ValueType::kInt16:
      return as(std::int16_t{});
    case ValueType::kUint32:
      return as(std::uint32_t{});
    case ValueType::kInt32:
      return as(std::int32_t{});
    case ValueType::kUint64:
      return as(std::uint64_t{});
    case ValueType::kInt64:
      return as(std::int64_t{});
    default:
      return false;
  }
}

std::string escape(std::string_view text, std::size_t limit) {
  std::string out = "\"";
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f || byte >= 0x80) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  out += '"';
  if (text.size() > limit) out += fmt::format("... ({} bytes)", text.size());
  return out;
}

// Reads forward over the file; every read says which field it was after when the file is too short.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  std::uint64_t position() const { return position_; }
  std::uint64_t left() const { return bytes_.size() - position_; }

  template <class... Args>
  Error error(fmt::format_string<Args...> format, Args&&... args) const {
    return {ErrorCode::kInvalidInput,
            fmt::format("{}: {}", name_, fmt::format(format, std::forward<Args>(args)...))};
  }

  // `field` is called for the message only.
  template <class Field>
  Result<std::span<const std::byte>> take(std::uint64_t n, const Field& field) {
    if (n > left())
      return error("{}: needs {} bytes at offset {}, the file has {} left (truncated?)", field(), n,
                   position_, left());
    const auto out = bytes_.subspan(position_, n);
    position_ += n;
    return out;
  }

  template <class T, class Field>
  Status read(T& out, const Field& field, T least = 0, T most = std::numeric_limits<T>::max()) {
    auto bytes = take(sizeof(T), field);
    if (!bytes) return bytes.error();
    out = load<T>(bytes->data());
    if (out < least || out > most)
      return error("{}: {} found, {} to {} wanted", field(), out, least, most);
    return Ok{};
  }

  template <class Field>
  Result<std::string_view> read_string(const Field& field, std::uint64_t limit) {
    std::uint64_t length = 0;
    if (Status s = read(length, [&] { return field() + " length"; }); !s) return s.error();
    if (length > limit)
      return error("{}: length {} found, at most {} wanted", field(), length, limit);
    auto bytes = take(length, field);
    if (!bytes) return bytes.error();
    return std::string_view(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& name_;
  std::uint64_t position_ = 0;
};

struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>{}(text);
  }
};
template <class T>
using StringMap = std::unordered_map<std::string, T, StringHash, std::equal_to<>>;

class MappedGguf final : public GgufFile {
 public:
  MappedGguf(std::span<const std::byte> bytes, std::string path)
      : bytes_(bytes), path_(std::move(path)) {}
  MappedGguf(MappedFile file, std::string path)
      : file_(std::move(file)), bytes_(file_.bytes()), path_(std::move(path)) {}
  MappedGguf(const MappedGguf&) = delete;
  MappedGguf& operator=(const MappedGguf&) = delete;

  Status parse_all();

  std::optional<std::uint64_t> get_uint(std::string_view key) const override {
    const Value* value = scalar(key);
    if (!value) return std::nullopt;
    std::optional<std::uint64_t> out;
    visit_integer(value->type, value->bytes.data(), [&](auto v) {
      if (v >= decltype(v){0}) out = static_cast<std::uint64_t>(v);
    });
    return out;
  }

  std::optional<double> get_float(std::string_view key) const override {
    const Value* value = scalar(key);
    if (!value) return std::nullopt;
    if (value->type == ValueType::kFloat32) return load<float>(value->bytes.data());
    if (value->type == ValueType::kFloat64) return load<double>(value->bytes.data());
    return std::nullopt;
  }

  std::optional<bool> get_bool(std::string_view key) const override {
    const Value* value = scalar(key);
    if (!value || value->type != ValueType::kBool) return std::nullopt;
    return value->bytes[0] != std::byte{0};
  }

  std::optional<std::string_view> get_string(std::string_view key) const override {
    const Value* value = scalar(key);
    if (!value || value->type != ValueType::kString) return std::nullopt;
    return as_text(value->bytes);
  }

  std::optional<std::vector<std::string_view>> get_strings(std::string_view key) const override {
    const Value* value = array(key);
    if (!value || value->type != ValueType::kString) return std::nullopt;
    return strings_of(*value, value->count);
  }

  std::optional<std::vector<std::int64_t>> get_ints(std::string_view key) const override {
    const Value* value = array(key);
    if (!value) return std::nullopt;
    std::vector<std::int64_t> out;
    out.reserve(value->count);
    bool fits = true;
    for (std::uint64_t i = 0; i < value->count; ++i) {
      const auto* at = value->bytes.data() + i * size_of(value->type);
      const bool integer = visit_integer(value->type, at, [&](auto v) {
        fits &= std::in_range<std::int64_t>(v);
        out.push_back(static_cast<std::int64_t>(v));
      });
      if (!integer || !fits) return std::nullopt;
    }
    return out;
  }

  std::vector<std::string> keys() const override { return keys_; }
  bool contains(std::string_view key) const override { return values_.contains(key); }
  std::string describe(std::string_view key) const override;

  const GgufTensor* find(std::string_view name) const override {
    const auto it = tensor_index_.find(name);
    return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
  }
  const std::vector<GgufTensor>& tensors() const override { return tensors_; }

  void release(const GgufTensor& tensor) const override {
    if (!file_.mapped() || tensor.data.empty()) return;
    // Outwards to whole pages: what a neighbour still needs of them is simply read again.
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<std::uintptr_t>(tensor.data.data()) / page * page;
    const auto end = reinterpret_cast<std::uintptr_t>(tensor.data.data() + tensor.data.size());
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }

  const std::string& path() const override { return path_; }
  std::uint64_t file_bytes() const override { return bytes_.size(); }

 private:
  static std::string_view as_text(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  const Value* lookup(std::string_view key, bool array) const {
    const auto it = values_.find(key);
    return it == values_.end() || it->second.array != array ? nullptr : &it->second;
  }
  const Value* scalar(std::string_view key) const { return lookup(key, false); }
  const Value* array(std::string_view key) const { return lookup(key, true); }

  // The lengths were checked when the file was parsed.
  static std::vector<std::string_view> strings_of(const Value& value, std::uint64_t count) {
    std::vector<std::string_view> out;
    out.reserve(count);
    const std::byte* at = value.bytes.data();
    for (std::uint64_t i = 0; i < count; ++i) {
      const auto length = load<std::uint64_t>(at);
      out.push_back(as_text({at + sizeof length, length}));
      at += sizeof length + length;
    }
    return out;
  }

  static std::string describe_scalar(ValueType type, std::span<const std::byte> bytes) {
    std::string out;
    if (visit_integer(type, bytes.data(), [&](auto v) { out = fmt::format("{}", v); })) return out;
    if (type == ValueType::kFloat32) return fmt::format("{}", load<float>(bytes.data()));
    if (type == ValueType::kFloat64) return fmt::format("{}", load<double>(bytes.data()));
    return bytes[0] != std::byte{0} ? "true" : "false";
  }

  Status parse_value(Cursor& cursor, const std::string& key);
  Result<Value> parse_array(Cursor& cursor, const std::string& key);
  Status parse_tensor_info(Cursor& cursor, std::uint64_t index);
  Status place_tensors(const Cursor& cursor);
  Result<std::uint64_t> read_alignment(const Cursor& cursor) const;

  MappedFile file_;  // none for bytes in memory
  std::span<const std::byte> bytes_;
  std::string path_;
  std::vector<std::string> keys_;  // in the file's order
  StringMap<Value> values_;
  std::vector<GgufTensor> tensors_;
  std::vector<std::uint64_t> offsets_;  // of tensors_, from the start of the data section
  StringMap<std::size_t> tensor_index_;
};

std::string MappedGguf::describe(std::string_view key) const {
  constexpr std::size_t kShownBytes = 160;  // of a string: two lines of a terminal
  constexpr std::uint64_t kShownElements = 6;
  const auto it = values_.find(key);
  if (it == values_.end()) return "(absent)";
  const Value& value = it->second;
  if (!value.array)
    return value.type == ValueType::kString ? escape(as_text(value.bytes), kShownBytes)
                                            : describe_scalar(value.type, value.bytes);
  std::string out = fmt::format("{} x {} [", kValueTypeNames[std::size_t(value.type)], value.count);
  const std::uint64_t shown = std::min(value.count, kShownElements);
  if (value.type == ValueType::kString) {
    const auto strings = strings_of(value, shown);
    for (std::uint64_t i = 0; i < shown; ++i) out += (i ? ", " : "") + escape(strings[i], 32);
  } else {
    const std::size_t size = size_of(value.type);
    for (std::uint64_t i = 0; i < shown; ++i)
      out += (i ? ", " : "") + describe_scalar(value.type, value.bytes.subspan(i * size, size));
  }
  return out + (shown < value.count ? ", ...]" : "]");
}

Result<Value> MappedGguf::parse_array(Cursor& cursor, const std::string& key) {
  const auto field = [&](const char* what) {
    return [&key, what] { return fmt::format("metadata key {}: {}", escape(key, 80), what); };
  };
  std::uint32_t type = 0;
  if (Status s = cursor.read(type, field("array element type"), 0u, kValueTypes - 1); !s)
    return s.error();
  Value value{.type = static_cast<ValueType>(type), .array = true};
  if (value.type == ValueType::kArray)
    return cursor.error("{}: an array of arrays found, which no published file uses",
                        field("array element type")());
  if (Status s = cursor.read(value.count, field("array count")); !s) return s.error();
  const std::uint64_t smallest = value.type == ValueType::kString ? 8 : size_of(value.type);
  if (value.count > cursor.left() / smallest)
    return cursor.error("{}: {} elements found, the {} bytes left of the file hold at most {}",
                        field("array count")(), value.count, cursor.left(),
                        cursor.left() / smallest);
  if (value.type != ValueType::kString) {
    auto bytes = cursor.take(value.count * smallest, field("array"));
    if (!bytes) return bytes.error();
    value.bytes = *bytes;
    return value;
  }
  const std::uint64_t begin = cursor.position();
  for (std::uint64_t i = 0; i < value.count; ++i) {
    auto text = cursor.read_string(
        [&] { return fmt::format("metadata key {}: string {} of the array", escape(key, 80), i); },
        std::numeric_limits<std::uint64_t>::max());
    if (!text) return text.error();
  }
  value.bytes = bytes_.subspan(begin, cursor.position() - begin);
  return value;
}

Status MappedGguf::parse_value(Cursor& cursor, const std::string& key) {
  const auto field = [&](const char* what) {
    return [&key, what] { return fmt::format("metadata key {}: {}", escape(key, 80), what); };
  };
  std::uint32_t type = 0;
  if (Status s = cursor.read(type, field("value type"), 0u, kValueTypes - 1); !s) return s;
  Value value{.type = static_cast<ValueType>(type)};
  if (value.type == ValueType::kArray) {
    auto parsed = parse_array(cursor, key);
    if (!parsed) return parsed.error();
    value = *parsed;
  } else if (value.type == ValueType::kString) {
    auto text = cursor.read_string(field("string"), std::numeric_limits<std::uint64_t>::max());
    if (!text) return text.error();
    value.bytes = std::as_bytes(std::span(text->data(), text->size()));
  } else {
    auto bytes = cursor.take(size_of(value.type), field("value"));
    if (!bytes) return bytes.error();
    value.bytes = *bytes;
  }
  if (value.type == ValueType::kBool)
    for (const std::byte b : value.bytes)
      if (b > std::byte{1})
        return cursor.error("{}: {} found, 0 or 1 wanted", field("bool")(), int(b));
  if (!values_.emplace(key, value).second)
    return cursor.error("metadata key {} appears twice", escape(key, 80));
  keys_.push_back(key);
  return Ok{};
}

Status MappedGguf::parse_tensor_info(Cursor& cursor, std::uint64_t index) {
  auto name = cursor.read_string([&] { return fmt::format("tensor {}: name", index); },
                                 kMaxTensorNameBytes);
  if (!name) return name.error();
  GgufTensor tensor{.name = std::string(*name)};
  const auto field = [&](const char* what) {
    return [&tensor, what] { return fmt::format("tensor {}: {}", escape(tensor.name, 80), what); };
  };
  if (tensor.name.empty()) return cursor.error("tensor {}: its name is empty", index);
  std::uint32_t n_dimensions = 0;
  if (Status s = cursor.read(n_dimensions, field("number of dimensions"), 1u, kMaxDimensions); !s)
    return s;
  for (std::uint32_t i = 0; i < n_dimensions; ++i) {
    const auto dimension = [&] { return fmt::format("{} {}", field("dimension")(), i); };
    std::uint64_t extent = 0;
    if (Status s = cursor.read(extent, dimension, std::uint64_t{1}, kMaxDimension); !s) return s;
    tensor.shape.push_back(static_cast<std::int64_t>(extent));
  }
  std::uint64_t offset = 0;
  if (Status s = cursor.read(tensor.ggml_type, field("type")); !s) return s;
  if (Status s = cursor.read(offset, field("offset")); !s) return s;
  if (!tensor_index_.emplace(tensor.name, tensors_.size()).second)
    return cursor.error("tensor {} appears twice", escape(tensor.name, 80));
  tensors_.push_back(std::move(tensor));
  offsets_.push_back(offset);
  return Ok{};
}

Result<std::uint64_t> MappedGguf::read_alignment(const Cursor& cursor) const {
  if (!values_.contains("general.alignment")) return kDefaultAlignment;
  const auto alignment = get_uint("general.alignment");
  if (!alignment || *alignment < 8 || *alignment > kMaxAlignment ||
      !std::has_single_bit(*alignment))
    return cursor.error("general.alignment: {} found, a power of two from 8 to {} wanted",
                        describe("general.alignment"), kMaxAlignment);
  return *alignment;
}

// Fills in every tensor's bytes from its offset.
Status MappedGguf::place_tensors(const Cursor& cursor) {
  if (tensors_.empty()) return Ok{};
  auto alignment = read_alignment(cursor);
  if (!alignment) return alignment.error();
  const std::uint64_t start = (cursor.position() + *alignment - 1) / *alignment * *alignment;
  const std::uint64_t available = bytes_.size() > start ? bytes_.size() - start : 0;
  struct Extent {
    std::uint64_t begin, end;
    std::size_t tensor;
  };
  std::vector<Extent> extents;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    GgufTensor& tensor = tensors_[i];
    const std::string name = escape(tensor.name, 80);
    const std::uint64_t offset = offsets_[i];
    if (offset % *alignment != 0)
      return cursor.error("tensor {}: offset {} found, a multiple of the alignment {} wanted", name,
                          offset, *alignment);
    if (offset > available)
      return cursor.error(
          "tensor {}: offset {} found, the file has {} bytes of tensor data "
          "(truncated?)",
          name, offset, available);
    const auto block = ggml_block(tensor.ggml_type);
    if (!block) continue;  // refused by name if the model needs it
    if (tensor.shape[0] % block->elements != 0)
      return cursor.error("tensor {}: first dimension {} found, a multiple of {} wanted for {}",
                          name, tensor.shape[0], block->elements, ggml_type_name(tensor.ggml_type));
    std::uint64_t bytes = static_cast<std::uint64_t>(tensor.shape[0] / block->elements);
    bool overflow = __builtin_mul_overflow(bytes, std::uint64_t(block->bytes), &bytes);
    for (std::size_t d = 1; d < tensor.shape.size(); ++d)
      overflow |= __builtin_mul_overflow(bytes, std::uint64_t(tensor.shape[d]), &bytes);
    if (overflow) return cursor.error("tensor {}: its size overflows 64 bits", name);
    if (bytes > available - offset)
      return cursor.error(
          "tensor {}: {} bytes at offset {} pass the end of the file's {} bytes of "
          "tensor data (truncated?)",
          name, bytes, offset, available);
    tensor.data = bytes_.subspan(start + offset, bytes);
    extents.push_back({offset, offset + bytes, i});
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  for (std::size_t i = 1; i < extents.size(); ++i)
    if (extents[i].begin < extents[i - 1].end)
      return cursor.error("tensors {} and {} overlap",
                          escape(tensors_[extents[i - 1].tensor].name, 80),
                          escape(tensors_[extents[i].tensor].name, 80));
  return Ok{};
}

Status MappedGguf::parse_all() {
  Cursor cursor(bytes_, path_);
  const auto field = [](const char* what) { return [what] { return std::string(what); }; };
  std::uint32_t magic = 0, version = 0;
  if (Status s = cursor.read(magic, field("magic")); !s) return s;
  if (magic != kMagic)
    return cursor.error("magic: {:08x} found, {:08x} (\"GGUF\") wanted", magic, kMagic);
  if (Status s = cursor.read(version, field("version")); !s) return s;
  if (version == __builtin_bswap32(kVersion))
    return cursor.error("version: a big-endian file found, little-endian wanted");
  if (version != kVersion) return cursor.error("version: {} found, {} wanted", version, kVersion);
  constexpr std::uint64_t kNone = 0;
  std::uint64_t n_tensors = 0, n_keys = 0;
  if (Status s = cursor.read(n_tensors, field("tensor count"), kNone, kMaxTensors); !s) return s;
  if (Status s = cursor.read(n_keys, field("metadata count"), kNone, kMaxKeys); !s) return s;

  for (std::uint64_t i = 0; i < n_keys; ++i) {
    auto key = cursor.read_string([&] { return fmt::format("metadata key {}", i); }, kMaxKeyBytes);
    if (!key) return key.error();
    if (key->empty()) return cursor.error("metadata key {}: it is empty", i);
    if (Status status = parse_value(cursor, std::string(*key)); !status) return status;
  }
  for (std::uint64_t i = 0; i < n_tensors; ++i)
    if (Status status = parse_tensor_info(cursor, i); !status) return status;
  return place_tensors(cursor);
}

Result<std::unique_ptr<GgufFile>> finish(std::unique_ptr<MappedGguf> file) {
  if (Status status = file->parse_all(); !status) return status.error();
  return std::unique_ptr<GgufFile>(std::move(file));
}

}  // namespace

Result<std::unique_ptr<GgufFile>> GgufFile::open(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  return finish(std::make_unique<MappedGguf>(std::move(*file), path));
}

Result<std::unique_ptr<GgufFile>> GgufFile::parse(std::span<const std::byte> bytes,
                                                  std::string name) {
  return finish(std::make_unique<MappedGguf>(bytes, std::move(name)));
}

}  // namespace foretoken
