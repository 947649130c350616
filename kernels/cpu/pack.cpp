// Between file rows and the packed layout (packed_layout.h), in both directions.
#include <cstring>

#include "file_blocks.h"
#include "foretoken/kernels/linear.h"
#include "half.h"
#include "packed_layout.h"

namespace foretoken::kernels {
namespace {

void put16(std::uint8_t* p, int lane, std::uint16_t v) { std::memcpy(p + 2 * lane, &v, 2); }
std::uint16_t get16(const std::uint8_t* p, int lane) {
  std::uint16_t v;
  std::memcpy(&v, p + 2 * lane, 2);
  return v;
}

// Four codes of one output at a time, as they lie in a lane vector's dword.
std::uint32_t get32(const std::uint8_t* p) {
  std::uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
void put32(std::uint8_t* p, std::uint32_t v) { std::memcpy(p, &v, 4); }
constexpr std::uint32_t bytes_of(std::uint32_t v) { return v * 0x01010101u; }

void put_nibbles(std::uint8_t* plane, int lane, const std::uint8_t* code) {
  for (int i = 0; i < 4; ++i)
    put32(plane + 64 * i + 4 * lane,
          (get32(code + 4 * i) & bytes_of(15)) | (get32(code + 4 * i + 16) & bytes_of(15)) << 4);
}
void get_nibbles(const std::uint8_t* plane, int lane, std::uint8_t* code) {
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t v = get32(plane + 64 * i + 4 * lane);
    put32(code + 4 * i, v & bytes_of(15));
    put32(code + 4 * i + 16, v >> 4 & bytes_of(15));
  }
}

// One more bit of each of 32 codes, above `shift` others: bit j of byte i is that of byte i of lane
// vector j.
void put_bits(std::uint8_t* plane, int lane, const std::uint8_t* code, int shift) {
  std::uint32_t v = 0;
  for (int j = 0; j < 8; ++j) v |= (get32(code + 4 * j) >> shift & bytes_of(1)) << j;
  put32(plane + 4 * lane, v);
}
void get_bits(const std::uint8_t* plane, int lane, std::uint8_t* code, int shift) {
  const std::uint32_t v = get32(plane + 4 * lane);
  for (int j = 0; j < 8; ++j)
    put32(code + 4 * j, get32(code + 4 * j) | (v >> j & bytes_of(1)) << shift);
}

// Two bits of each of 32 codes, above `shift` others.
void put_pairs(std::uint8_t* plane, int lane, const std::uint8_t* code, int shift) {
  for (int half = 0; half < 2; ++half) {
    std::uint32_t v = 0;
    for (int f = 0; f < 4; ++f)
      v |= (get32(code + 16 * half + 4 * f) >> shift & bytes_of(3)) << (2 * f);
    put32(plane + 64 * half + 4 * lane, v);
  }
}
void get_pairs(const std::uint8_t* plane, int lane, std::uint8_t* code, int shift) {
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t v = get32(plane + 64 * half + 4 * lane);
    for (int f = 0; f < 4; ++f) {
      std::uint8_t* at = code + 16 * half + 4 * f;
      put32(at, get32(at) | (v >> (2 * f) & bytes_of(3)) << shift);
    }
  }
}

void put_whole_bytes(std::uint8_t* plane, int lane, const std::uint8_t* code) {
  for (int i = 0; i < 8; ++i) put32(plane + 64 * i + 4 * lane, get32(code + 4 * i));
}
void get_whole_bytes(const std::uint8_t* plane, int lane, std::uint8_t* code) {
  for (int i = 0; i < 8; ++i) put32(code + 4 * i, get32(plane + 64 * i + 4 * lane));
}

void put_block(WeightType type, const DecodedBlock& block, int lane, std::uint8_t* record,
               std::uint8_t* tail) {
  if (tail_bytes(type) > 0) put16(tail, lane, block.d);
  switch (type) {
    case WeightType::kQ8_0:
      put_whole_bytes(record, lane, block.code);
      return;
    case WeightType::kQ4_0:
    case WeightType::kIQ4_NL:
      put_nibbles(record, lane, block.code);
      return;
    case WeightType::kQ4_1:
      put_nibbles(record, lane, block.code);
      put16(record + 256, lane, block.d);
      put16(record + 288, lane, block.m);
      return;
    case WeightType::kQ5_0:
    case WeightType::kQ5_1:
      put_nibbles(record, lane, block.code);
      put_bits(record + 256, lane, block.code, 4);
      if (type == WeightType::kQ5_1) {
        put16(record + 320, lane, block.d);
        put16(record + 352, lane, block.m);
      }
      return;
    case WeightType::kQ2_K:
      for (int b = 0; b < 8; ++b) put_pairs(record + 128 * b, lane, block.code + 32 * b, 0);
      for (int s = 0; s < 16; ++s)
        record[kQ2KScales + static_cast<std::size_t>(s / 4 * 64 + lane * 4 + (s & 3))] =
            static_cast<std::uint8_t>(block.scale[s] | block.min[s] << 4);
      put16(record + kQ2KD, lane, block.d);
      put16(record + kQ2KDmin, lane, block.m);
      return;
    case WeightType::kQ3_K:
      for (int b = 0; b < 8; ++b) {
        put_pairs(record + 128 * b, lane, block.code + 32 * b, 0);
        put_bits(record + kQ3KThirds + 64 * b, lane, block.code + 32 * b, 2);
      }
      for (int s = 0; s < 16; ++s)
        record[kQ3KScales + static_cast<std::size_t>(16 * s + lane)] =
            static_cast<std::uint8_t>(block.scale[s]);
      return;
    case WeightType::kQ4_K:
    case WeightType::kQ5_K:
      for (int b = 0; b < 8; ++b) {
        put_nibbles(record + 256 * b, lane, block.code + 32 * b);
        if (type == WeightType::kQ5_K)
          put_bits(record + kQ5KFifths + 64 * b, lane, block.code + 32 * b, 4);
        record[k_scales(type) + static_cast<std::size_t>(16 * b + lane)] =
            static_cast<std::uint8_t>(block.scale[b]);
        record[k_mins(type) + static_cast<std::size_t>(b / 4 * 64 + lane * 4 + (b & 3))] =
            block.min[b];
      }
      put16(record + k_d(type), lane, block.d);
      put16(record + k_dmin(type), lane, block.m);
      return;
    case WeightType::kQ6_K:
      for (int b = 0; b < 8; ++b) {
        put_nibbles(record + 256 * b, lane, block.code + 32 * b);
        put_pairs(record + kQ6KPairs + 128 * b, lane, block.code + 32 * b, 4);
      }
      for (int s = 0; s < 16; ++s)
        record[kQ6KScales + static_cast<std::size_t>(16 * s + lane)] =
            static_cast<std::uint8_t>(block.scale[s]);
      return;
    default:
      __builtin_trap();
  }
}

void get_block(WeightType type, const std::uint8_t* record, const std::uint8_t* tail, int lane,
               DecodedBlock* block) {
  if (tail_bytes(type) > 0) block->d = get16(tail, lane);
  switch (type) {
    case WeightType::kQ8_0:
      get_whole_bytes(record, lane, block->code);
      return;
    case WeightType::kQ4_0:
    case WeightType::kIQ4_NL:
      get_nibbles(record, lane, block->code);
      return;
    case WeightType::kQ4_1:
      get_nibbles(record, lane, block->code);
      block->d = get16(record + 256, lane);
      block->m = get16(record + 288, lane);
      return;
    case WeightType::kQ5_0:
    case WeightType::kQ5_1:
      get_nibbles(record, lane, block->code);
      get_bits(record + 256, lane, block->code, 4);
      if (type == WeightType::kQ5_1) {
        block->d = get16(record + 320, lane);
        block->m = get16(record + 352, lane);
      }
      return;
    case WeightType::kQ2_K:
      std::memset(block->code, 0, sizeof(block->code));
      for (int b = 0; b < 8; ++b) get_pairs(record + 128 * b, lane, block->code + 32 * b, 0);
      for (int s = 0; s < 16; ++s) {
        const std::uint8_t byte =
            record[kQ2KScales + static_cast<std::size_t>(s / 4 * 64 + lane * 4 + (s & 3))];
        block->scale[s] = static_cast<std::int8_t>(byte & 15);
        block->min[s] = byte >> 4;
      }
      block->d = get16(record + kQ2KD, lane);
      block->m = get16(record + kQ2KDmin, lane);
      return;
    case WeightType::kQ3_K:
      std::memset(block->code, 0, sizeof(block->code));
      for (int b = 0; b < 8; ++b) {
        get_pairs(record + 128 * b, lane, block->code + 32 * b, 0);
        get_bits(record + kQ3KThirds + 64 * b, lane, block->code + 32 * b, 2);
      }
      for (int s = 0; s < 16; ++s)
        block->scale[s] =
            static_cast<std::int8_t>(record[kQ3KScales + static_cast<std::size_t>(16 * s + lane)]);
      return;
    case WeightType::kQ4_K:
    case WeightType::kQ5_K:
      for (int b = 0; b < 8; ++b) {
        get_nibbles(record + 256 * b, lane, block->code + 32 * b);
        if (type == WeightType::kQ5_K)
          get_bits(record + kQ5KFifths + 64 * b, lane, block->code + 32 * b, 4);
        block->scale[b] = static_cast<std::int8_t>(
            record[k_scales(type) + static_cast<std::size_t>(16 * b + lane)]);
        block->min[b] =
            record[k_mins(type) + static_cast<std::size_t>(b / 4 * 64 + lane * 4 + (b & 3))];
      }
      block->d = get16(record + k_d(type), lane);
      block->m = get16(record + k_dmin(type), lane);
      return;
    case WeightType::kQ6_K:
      for (int b = 0; b < 8; ++b) {
        get_nibbles(record + 256 * b, lane, block->code + 32 * b);
        get_pairs(record + kQ6KPairs + 128 * b, lane, block->code + 32 * b, 4);
      }
      for (int s = 0; s < 16; ++s)
        block->scale[s] =
            static_cast<std::int8_t>(record[kQ6KScales + static_cast<std::size_t>(16 * s + lane)]);
      return;
    default:
      __builtin_trap();
  }
}

bool is_float(WeightType type) { return weight_block_values(type) == 1; }

}  // namespace

std::size_t packed_bytes(WeightType type, std::int64_t n_out, std::int64_t n_in) {
  return static_cast<std::size_t>(n_groups(n_out)) * group_bytes(type, n_in);
}

void pack_rows(const PackedMatrix& w, std::int64_t first_row, std::int64_t n_rows,
               const std::byte* file_rows) {
  const std::size_t row_bytes = weight_row_bytes(w.type, w.n_in);
  const std::size_t block_bytes = file_block_bytes(w.type);
  const std::int64_t n_blocks = w.n_in / weight_block_values(w.type);
  const std::size_t group_size = group_bytes(w.type, w.n_in);
  DecodedBlock block;
  for (std::int64_t row = 0; row < n_rows; row += kPackRows) {
    auto* group = reinterpret_cast<std::uint8_t*>(w.data) +
                  static_cast<std::size_t>((first_row + row) / kPackRows) * group_size;
    std::memset(group, 0, group_size);
    const int lanes = static_cast<int>(n_rows - row < kPackRows ? n_rows - row : kPackRows);
    for (int lane = 0; lane < lanes; ++lane) {
      const std::byte* file = file_rows + static_cast<std::size_t>(row + lane) * row_bytes;
      std::uint8_t* record = group;
      std::uint8_t* tail = group + tail_offset(w.type, w.n_in);
      for (std::int64_t b = 0; b < n_blocks; ++b) {
        if (is_float(w.type)) {
          std::memcpy(record + static_cast<std::size_t>(lane) * block_bytes, file, block_bytes);
        } else {
          decode_file_block(w.type, file, &block);
          put_block(w.type, block, lane, record, tail);
        }
        file += block_bytes;
        record += record_bytes(w.type);
        tail += tail_bytes(w.type);
      }
    }
  }
}

void gather_rows(const PackedMatrix& from, const std::int32_t* rows, std::int64_t n_rows,
                 const PackedMatrix& to, std::int64_t first_row) {
  const std::size_t group_size = group_bytes(to.type, to.n_in);
  const std::int64_t n_blocks = to.n_in / weight_block_values(to.type);
  DecodedBlock block;
  for (std::int64_t row = 0; row < n_rows; row += kPackRows) {
    auto* group = reinterpret_cast<std::uint8_t*>(to.data) +
                  static_cast<std::size_t>((first_row + row) / kPackRows) * group_size;
    std::memset(group, 0, group_size);
    for (int lane = 0; lane < kPackRows && row + lane < n_rows; ++lane) {
      const std::int32_t source = rows[row + lane];
      const auto* record = reinterpret_cast<const std::uint8_t*>(from.data) +
                           static_cast<std::size_t>(source / kPackRows) * group_size;
      const int from_lane = source % kPackRows;
      std::size_t at = 0, tail = tail_offset(to.type, to.n_in);
      for (std::int64_t b = 0; b < n_blocks; ++b) {
        if (is_float(to.type)) {
          const std::size_t bytes = record_bytes(to.type) / kPackRows;
          std::memcpy(group + at + static_cast<std::size_t>(lane) * bytes,
                      record + at + static_cast<std::size_t>(from_lane) * bytes, bytes);
        } else {
          get_block(to.type, record + at, record + tail, from_lane, &block);
          put_block(to.type, block, lane, group + at, group + tail);
        }
        at += record_bytes(to.type);
        tail += tail_bytes(to.type);
      }
    }
  }
}

void dequantize_row(const PackedMatrix& w, std::int64_t row, float* out) {
  const auto* group = reinterpret_cast<const std::uint8_t*>(w.data) +
                      static_cast<std::size_t>(row / kPackRows) * group_bytes(w.type, w.n_in);
  const int lane = static_cast<int>(row % kPackRows);
  const std::uint8_t* record = group;
  const std::uint8_t* tail = group + tail_offset(w.type, w.n_in);
  const int values = weight_block_values(w.type);
  DecodedBlock block;
  for (std::int64_t i = 0; i < w.n_in; i += values) {
    switch (w.type) {
      case WeightType::kF32:
        std::memcpy(out + i, record + 4 * lane, 4);
        break;
      case WeightType::kF16:
        out[i] = half_to_float(get16(record, lane));
        break;
      case WeightType::kBF16:
        out[i] = bfloat_to_float(get16(record, lane));
        break;
      default:
        get_block(w.type, record, tail, lane, &block);
        block_values(w.type, block, out + i);
    }
    record += record_bytes(w.type);
    tail += tail_bytes(w.type);
  }
}

}  // namespace foretoken::kernels
