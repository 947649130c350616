// Weights between file rows, the packed layout and floats: one set of loops, compiled for each
// type.
#include "kernels/cpu/weights.h"

#include "kernels/cpu/weight_types.h"

namespace foretoken::kernels {
namespace {

struct WeightOps {
  std::size_t (*group_bytes)(std::int64_t n_in, std::int64_t block_values);
  void (*pack_rows)(const PackedMatrix& w, std::int64_t first_row, std::int64_t n_rows,
                    const std::byte* file_rows);
  void (*gather_rows)(const PackedMatrix& from, const std::int32_t* rows, std::int64_t n_rows,
                      const PackedMatrix& to, std::int64_t first_row);
  void (*dequantize_row)(const PackedMatrix& w, std::int64_t row, float* out);
  void (*dequantize_file_row)(const std::byte* file_row, std::int64_t n_in, float* out);
};

template <class T, WeightType kType>
struct WeightOpsOf {
  static constexpr std::int64_t kValues = weight_block_values(kType);
  static constexpr std::size_t kFileBytes = weight_row_bytes(kType, kValues);

  // One output of a group, block by block.
  struct Output {
    std::uint8_t *record, *tail;
    int lane;
    Output(const PackedMatrix& w, std::int64_t row)
        : record(reinterpret_cast<std::uint8_t*>(w.data) +
                 static_cast<std::size_t>(row / kPackRows) * group_bytes_of<T>(w.n_in, kValues)),
          tail(record + static_cast<std::size_t>(w.n_in / kValues) * T::record_bytes()),
          lane(static_cast<int>(row % kPackRows)) {}
    void next() {
      record += T::record_bytes();
      tail += T::tail_bytes();
    }
  };
  // put(row, output) for rows [0, n_rows), which become rows first_row .. of w; the rest of the
  // last group is 0.
  template <class Put>
  static void fill(const PackedMatrix& w, std::int64_t first_row, std::int64_t n_rows, Put put) {
    for (std::int64_t row = 0; row < n_rows; ++row) {
      const Output output(w, first_row + row);
      if (row % kPackRows == 0) std::memset(output.record, 0, group_bytes_of<T>(w.n_in, kValues));
      put(row, output);
    }
  }

  static void pack_rows(const PackedMatrix& w, std::int64_t first_row, std::int64_t n_rows,
                        const std::byte* file_rows) {
    const auto* file = reinterpret_cast<const std::uint8_t*>(file_rows);
    fill(w, first_row, n_rows, [&](std::int64_t, Output to) {
      for (std::int64_t b = 0; b < w.n_in / kValues; ++b, to.next(), file += kFileBytes)
        T::put(file, to.lane, to.record, to.tail);
    });
  }
  static void gather_rows(const PackedMatrix& from, const std::int32_t* rows, std::int64_t n_rows,
                          const PackedMatrix& to, std::int64_t first_row) {
    fill(to, first_row, n_rows, [&](std::int64_t row, Output out) {
      Output in(from, rows[row]);
      for (std::int64_t b = 0; b < to.n_in / kValues; ++b, in.next(), out.next())
        T::copy(in.record, in.tail, in.lane, out.record, out.tail, out.lane);
    });
  }
  static void dequantize_row(const PackedMatrix& w, std::int64_t row, float* out) {
    Output at(w, row);
    for (std::int64_t i = 0; i < w.n_in; i += kValues, at.next())
      T::values(at.record, at.tail, at.lane, out + i);
  }
  static void dequantize_file_row(const std::byte* file_row, std::int64_t n_in, float* out) {
    const auto* file = reinterpret_cast<const std::uint8_t*>(file_row);
    for (std::int64_t i = 0; i < n_in; i += kValues, file += kFileBytes)
      T::file_values(file, out + i);
  }
  static constexpr WeightOps kOps = {group_bytes_of<T>, pack_rows, gather_rows, dequantize_row,
                                     dequantize_file_row};
};

constexpr const WeightOps* kWeightOps[] = {
#define FORETOKEN_ROW(name, ...) &WeightOpsOf<name, WeightType::k##name>::kOps,
    FORETOKEN_WEIGHT_TYPES(FORETOKEN_ROW)
#undef FORETOKEN_ROW
};
const WeightOps& ops(WeightType type) { return *kWeightOps[static_cast<int>(type)]; }

template <class Matches>
std::optional<WeightType> find(Matches matches) {
  for (const WeightFormat& format : kWeightFormats)
    if (matches(format)) return format.type;
  return std::nullopt;
}

}  // namespace

std::optional<WeightType> weight_type_of_ggml(std::uint32_t ggml_type) {
  return find([&](const WeightFormat& f) {
    return f.ggml_type >= 0 && static_cast<std::uint32_t>(f.ggml_type) == ggml_type;
  });
}
std::optional<WeightType> weight_type_of_safetensors(std::string_view name) {
  return find([&](const WeightFormat& f) { return !name.empty() && f.safetensors == name; });
}

std::size_t group_bytes(WeightType type, std::int64_t n_in) {
  return ops(type).group_bytes(n_in, weight_block_values(type));
}
std::size_t packed_bytes(WeightType type, std::int64_t n_out, std::int64_t n_in) {
  return static_cast<std::size_t>(n_groups(n_out)) * group_bytes(type, n_in);
}

void pack_rows(const PackedMatrix& w, std::int64_t first_row, std::int64_t n_rows,
               const std::byte* file_rows) {
  ops(w.type).pack_rows(w, first_row, n_rows, file_rows);
}
void gather_rows(const PackedMatrix& from, const std::int32_t* rows, std::int64_t n_rows,
                 const PackedMatrix& to, std::int64_t first_row) {
  ops(to.type).gather_rows(from, rows, n_rows, to, first_row);
}
void dequantize_row(const PackedMatrix& w, std::int64_t row, float* out) {
  ops(w.type).dequantize_row(w, row, out);
}
void dequantize_file_row(WeightType type, const std::byte* file_row, std::int64_t n_in,
                         float* out) {
  ops(type).dequantize_file_row(file_row, n_in, out);
}

}  // namespace foretoken::kernels
