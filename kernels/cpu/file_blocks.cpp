#include "file_blocks.h"

#include <bit>
#include <cstring>

#include "half.h"

static_assert(std::endian::native == std::endian::little, "GGUF is read as it lies");

namespace foretoken::kernels {
namespace {

const std::uint8_t* bytes(const std::byte* p) { return reinterpret_cast<const std::uint8_t*>(p); }

std::uint16_t load16(const std::uint8_t* p) {
  std::uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}

std::uint32_t load32(const std::uint8_t* p) {
  std::uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

// 16 bytes hold values 0..15 in their low and 16..31 in their high nibbles.
void nibbles32(const std::uint8_t* q, std::uint8_t* code) {
  for (int i = 0; i < 16; ++i) {
    code[i] = q[i] & 15;
    code[i + 16] = q[i] >> 4;
  }
}

// 12 bytes of Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minimums; the upper two bits of
// numbers 4..7 lie above the 6-bit numbers 0..3.
void unpack_scales_6bit(const std::uint8_t* p, std::int8_t* scale, std::uint8_t* min) {
  for (int j = 0; j < 4; ++j) {
    scale[j] = static_cast<std::int8_t>(p[j] & 63);
    min[j] = p[j + 4] & 63;
    scale[j + 4] = static_cast<std::int8_t>((p[j + 8] & 15) | (p[j] >> 6) << 4);
    min[j + 4] = static_cast<std::uint8_t>((p[j + 8] >> 4) | (p[j + 4] >> 6) << 4);
  }
}

// Q3_K's 12 bytes: sixteen 6-bit scales, less 32; their upper two bits are the last four bytes.
void unpack_scales_q3(const std::uint8_t* p, std::int8_t* scale) {
  for (int j = 0; j < 16; ++j) {
    const int low = j < 8 ? p[j] & 15 : p[j - 8] >> 4;
    const int high = p[8 + j % 4] >> (2 * (j / 4)) & 3;
    scale[j] = static_cast<std::int8_t>((low | high << 4) - 32);
  }
}

// 64 bytes hold 256 two-bit codes, by 128 values: bits 2j of byte i are value 32 j + i.
void pairs256(const std::uint8_t* q, std::uint8_t* code) {
  for (int i = 0; i < 256; ++i) code[i] = q[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}

struct TypeInfo {
  const char* name;
  int values;
  std::size_t bytes;
};
constexpr TypeInfo kTypes[kWeightTypes] = {
    {"F32", 1, 4},      {"F16", 1, 2},      {"BF16", 1, 2},     {"Q8_0", 32, 34},
    {"Q4_0", 32, 18},   {"Q4_1", 32, 20},   {"Q5_0", 32, 22},   {"Q5_1", 32, 24},
    {"IQ4_NL", 32, 18}, {"Q2_K", 256, 84},  {"Q3_K", 256, 110}, {"Q4_K", 256, 144},
    {"Q5_K", 256, 176}, {"Q6_K", 256, 210},
};
const TypeInfo& info(WeightType type) { return kTypes[static_cast<int>(type)]; }

}  // namespace

const char* weight_type_name(WeightType type) { return info(type).name; }
int weight_block_values(WeightType type) { return info(type).values; }
std::size_t file_block_bytes(WeightType type) { return info(type).bytes; }

std::size_t weight_row_bytes(WeightType type, std::int64_t n_in) {
  return static_cast<std::size_t>(n_in / info(type).values) * info(type).bytes;
}

void decode_file_block(WeightType type, const std::byte* block, DecodedBlock* out) {
  const std::uint8_t* p = bytes(block);
  switch (type) {
    case WeightType::kQ8_0:  // d, int8[32]
      out->d = load16(p);
      for (int i = 0; i < 32; ++i) out->code[i] = p[2 + i] ^ 0x80;
      return;
    case WeightType::kQ4_0:  // d, nibbles
    case WeightType::kIQ4_NL:
      out->d = load16(p);
      nibbles32(p + 2, out->code);
      return;
    case WeightType::kQ4_1:  // d, m, nibbles
      out->d = load16(p);
      out->m = load16(p + 2);
      nibbles32(p + 4, out->code);
      return;
    case WeightType::kQ5_1:    // d, m, fifth bits, nibbles
    case WeightType::kQ5_0: {  // d, fifth bits, nibbles
      out->d = load16(p);
      p += 2;
      if (type == WeightType::kQ5_1) {
        out->m = load16(p);
        p += 2;
      }
      const std::uint32_t high = load32(p);
      nibbles32(p + 4, out->code);
      for (int i = 0; i < 32; ++i)
        out->code[i] = static_cast<std::uint8_t>(out->code[i] | ((high >> i & 1) << 4));
      return;
    }
    case WeightType::kQ2_K:  // scale and minimum nibbles 16, pairs 64, d, dmin
      for (int j = 0; j < 16; ++j) {
        out->scale[j] = static_cast<std::int8_t>(p[j] & 15);
        out->min[j] = p[j] >> 4;
      }
      pairs256(p + 16, out->code);
      out->d = load16(p + 80);
      out->m = load16(p + 82);
      return;
    case WeightType::kQ3_K:  // third bits 32, pairs 64, 6-bit scales 12, d
      pairs256(p + 32, out->code);
      for (int i = 0; i < 256; ++i)
        out->code[i] = static_cast<std::uint8_t>(out->code[i] | (p[i % 32] >> (i / 32) & 1) << 2);
      unpack_scales_q3(p + 96, out->scale);
      out->d = load16(p + 108);
      return;
    case WeightType::kQ4_K:    // d, dmin, 6-bit scales, nibbles by 64 values
    case WeightType::kQ5_K: {  // d, dmin, 6-bit scales, fifth bits 32, nibbles by 64 values
      out->d = load16(p);
      out->m = load16(p + 2);
      unpack_scales_6bit(p + 4, out->scale, out->min);
      const bool five = type == WeightType::kQ5_K;
      const std::uint8_t* nibbles = p + (five ? 48 : 16);
      for (int j = 0; j < 8; j += 2, nibbles += 32) {
        std::uint8_t* code = out->code + 32 * j;
        for (int i = 0; i < 32; ++i) {
          code[i] = nibbles[i] & 15;
          code[i + 32] = nibbles[i] >> 4;
        }
      }
      if (five)
        for (int j = 0; j < 8; ++j)
          for (int i = 0; i < 32; ++i)
            out->code[32 * j + i] =
                static_cast<std::uint8_t>(out->code[32 * j + i] | (p[16 + i] >> j & 1) << 4);
      return;
    }
    case WeightType::kQ6_K:  // low nibbles 128, high pairs 64, scales 16, d
      for (int half = 0; half < 2; ++half) {
        const std::uint8_t* low = p + 64 * half;
        const std::uint8_t* high = p + 128 + 32 * half;
        std::uint8_t* code = out->code + 128 * half;
        for (int i = 0; i < 32; ++i) {
          code[i] = static_cast<std::uint8_t>((low[i] & 15) | (high[i] & 3) << 4);
          code[i + 32] = static_cast<std::uint8_t>((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
          code[i + 64] = static_cast<std::uint8_t>(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
          code[i + 96] = static_cast<std::uint8_t>(low[i + 32] >> 4 | (high[i] >> 6) << 4);
        }
      }
      std::memcpy(out->scale, p + 192, 16);
      out->d = load16(p + 208);
      return;
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  __builtin_trap();  // float types have no blocks
}

void block_values(WeightType type, const DecodedBlock& block, float* out) {
  const float d = half_to_float(block.d);
  switch (type) {
    case WeightType::kQ8_0:
    case WeightType::kQ4_0:
    case WeightType::kQ5_0: {
      const int offset = type == WeightType::kQ8_0 ? 128 : type == WeightType::kQ4_0 ? 8 : 16;
      for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(block.code[i] - offset);
      return;
    }
    case WeightType::kIQ4_NL:
      for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(kIq4Values[block.code[i]]);
      return;
    case WeightType::kQ4_1:
    case WeightType::kQ5_1: {
      const float m = half_to_float(block.m);
      for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(block.code[i]) + m;
      return;
    }
    case WeightType::kQ2_K:
    case WeightType::kQ4_K:
    case WeightType::kQ5_K: {
      const float m = half_to_float(block.m);
      const int values = type == WeightType::kQ2_K ? 16 : 32;
      for (int i = 0; i < 256; ++i) {
        const float scale = d * static_cast<float>(block.scale[i / values]);
        const float min = m * static_cast<float>(block.min[i / values]);
        out[i] = scale * static_cast<float>(block.code[i]) - min;
      }
      return;
    }
    case WeightType::kQ3_K:
    case WeightType::kQ6_K: {
      const int offset = type == WeightType::kQ3_K ? 4 : 32;
      for (int i = 0; i < 256; ++i) {
        const float scale = d * static_cast<float>(block.scale[i / 16]);
        out[i] = scale * static_cast<float>(block.code[i] - offset);
      }
      return;
    }
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  __builtin_trap();
}

void dequantize_file_row(WeightType type, const std::byte* file_row, std::int64_t n_in,
                         float* out) {
  switch (type) {
    case WeightType::kF32:
      std::memcpy(out, file_row, static_cast<std::size_t>(n_in) * 4);
      return;
    case WeightType::kF16:
      for (std::int64_t i = 0; i < n_in; ++i)
        out[i] = half_to_float(load16(bytes(file_row) + 2 * i));
      return;
    case WeightType::kBF16:
      for (std::int64_t i = 0; i < n_in; ++i)
        out[i] = bfloat_to_float(load16(bytes(file_row) + 2 * i));
      return;
    default:
      break;
  }
  const int values = info(type).values;
  DecodedBlock block;
  for (std::int64_t i = 0; i < n_in; i += values, file_row += info(type).bytes) {
    decode_file_block(type, file_row, &block);
    block_values(type, block, out + i);
  }
}

}  // namespace foretoken::kernels
