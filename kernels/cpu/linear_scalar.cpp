// The reference, and the truth the other instruction sets are tested against: the same integer sums
// and the same float operations in the same order, one output and one row at a time.
//
//   blocks of 32:   y = fma(float(sum q w), d * scale, y) over the blocks; with minimums: then
//                   y = fma(m, scale * sum q, y)
//   blocks of 256:  s = float(sum_j scale_j sum q w), an exact integer sum over the sub-blocks j,
//                   times d; with minimums: s = fma(., d, float(sum m q) * -dmin);
//                   y = fma(s, scale, y)
//   float weights:  y = fma(w, x, y) over k
#include <cmath>
#include <cstring>

#include "file_blocks.h"
#include "half.h"
#include "linear_functions.h"
#include "packed_layout.h"

namespace foretoken::kernels {
namespace {

std::uint16_t get16(const std::uint8_t* p, int lane) {
  std::uint16_t v;
  std::memcpy(&v, p + 2 * lane, 2);
  return v;
}
float half_at(const std::uint8_t* p, int lane) { return half_to_float(get16(p, lane)); }

// Lane vector j of 32 nibbles, as bytes of one output.
void nibble_codes(const std::uint8_t* plane, int lane, std::int32_t* code) {
  for (int j = 0; j < 8; ++j)
    for (int i = 0; i < 4; ++i)
      code[4 * j + i] = plane[(j & 3) * 64 + lane * 4 + i] >> (j < 4 ? 0 : 4) & 15;
}

std::int32_t dot(const std::int32_t* code, const std::int8_t* q, int n) {
  std::int32_t sum = 0;
  for (int i = 0; i < n; ++i) sum += code[i] * q[i];
  return sum;
}

// Bit `shift` and above of 32 codes, from a plane of bits or of pairs.
void add_bits(const std::uint8_t* plane, int lane, std::int32_t* code, int shift) {
  for (int i = 0; i < 32; ++i) code[i] |= (plane[lane * 4 + (i & 3)] >> (i / 4) & 1) << shift;
}
void add_pairs(const std::uint8_t* plane, int lane, std::int32_t* code, int shift) {
  for (int i = 0; i < 32; ++i)
    code[i] |= (plane[i / 16 * 64 + lane * 4 + (i & 3)] >> (2 * (i / 4 & 3)) & 3) << shift;
}

float row_block32(WeightType type, const std::uint8_t* record, const std::uint8_t* tail, int lane,
                  const Record32& x, float y) {
  std::int32_t code[32];
  std::int32_t offset = 0;
  if (type == WeightType::kQ8_0) {
    for (int i = 0; i < 32; ++i) code[i] = record[i / 4 * 64 + lane * 4 + (i & 3)];
    offset = x.minus128_sum;
  } else {
    nibble_codes(record, lane, code);
  }
  if (type == WeightType::kQ4_0) offset = x.minus8_sum;
  if (type == WeightType::kIQ4_NL)
    for (std::int32_t& c : code) c = kIq4Values[c];
  if (type == WeightType::kQ5_0 || type == WeightType::kQ5_1) add_bits(record + 256, lane, code, 4);
  if (type == WeightType::kQ5_0) offset = 2 * x.minus8_sum;
  const std::size_t minimum_at = record_bytes(type) - 32;  // where there is one
  const bool minimum = type == WeightType::kQ4_1 || type == WeightType::kQ5_1;
  const float d = half_at(minimum ? record + minimum_at - 32 : tail, lane);
  y = std::fma(static_cast<float>(offset + dot(code, x.q, 32)), d * x.scale, y);
  if (minimum) y = std::fma(half_at(record + minimum_at, lane), x.scaled_sum, y);
  return y;
}

// Q4_K, Q5_K.
float row_min_k(WeightType type, const std::uint8_t* record, int lane, const Record256& x,
                float y) {
  constexpr int kPairPlace[8] = {0, 2, 1, 3, 4, 6, 5, 7};
  std::int32_t min_sum = 0;
  for (int b = 0; b < 8; ++b)
    min_sum += record[k_mins(type) + static_cast<std::size_t>(b / 4 * 64 + lane * 4 + (b & 3))] *
               x.pair_sum[kPairPlace[b]];
  const float least = static_cast<float>(min_sum) * -half_at(record + k_dmin(type), lane);
  std::int32_t code[32], sum = 0;
  for (int b = 0; b < 8; ++b) {
    nibble_codes(record + 256 * b, lane, code);
    if (type == WeightType::kQ5_K) add_bits(record + kQ5KFifths + 64 * b, lane, code, 4);
    // At most 256 * 31 * 127 * 63 < 2^26 in all.
    sum += record[k_scales(type) + static_cast<std::size_t>(16 * b + lane)] *
           dot(code, x.q + 32 * b, 32);
  }
  const float s = std::fma(static_cast<float>(sum), half_at(record + k_d(type), lane), least);
  return std::fma(s, x.scale, y);
}

float row_q2_k(const std::uint8_t* record, int lane, const Record256& x, float y) {
  auto nibbles = [&](int s) {
    return record[kQ2KScales + static_cast<std::size_t>(s / 4 * 64 + lane * 4 + (s & 3))];
  };
  // 32 times the sum of minimums: at most 15 * 32 * 256 * 127 < 2^24, exact in a float.
  std::int32_t min_sum = 0;
  for (int s = 0; s < 16; ++s) min_sum += (nibbles(s) >> 4) * x.minus32_sum[s];
  const float least = static_cast<float>(min_sum) * (half_at(record + kQ2KDmin, lane) * 0.03125f);
  std::int32_t code[32], sum = 0;
  for (int b = 0; b < 8; ++b) {
    std::memset(code, 0, sizeof(code));
    add_pairs(record + 128 * b, lane, code, 0);
    for (int half = 0; half < 2; ++half) {
      const int sub = 2 * b + half;
      sum += (nibbles(sub) & 15) * dot(code + 16 * half, x.q + 16 * sub, 16);
    }
  }
  const float s = std::fma(static_cast<float>(sum), half_at(record + kQ2KD, lane), least);
  return std::fma(s, x.scale, y);
}

// Q6_K, and Q3_K as if its three bits were the upper ones of six: 8 code - 32, an eighth of d.
float row_signed_k(WeightType type, const std::uint8_t* record, const std::uint8_t* tail, int lane,
                   const Record256& x, float y) {
  const bool three = type == WeightType::kQ3_K;
  const std::uint8_t* scales = record + (three ? kQ3KScales : kQ6KScales);
  const float d = half_at(tail, lane) * (three ? 0.125f : 1.0f);
  std::int32_t code[32], sum = 0;
  for (int b = 0; b < 8; ++b) {
    if (three) {
      std::memset(code, 0, sizeof(code));
      add_pairs(record + 128 * b, lane, code, 3);
      add_bits(record + kQ3KThirds + 64 * b, lane, code, 5);
    } else {
      nibble_codes(record + 256 * b, lane, code);
      add_pairs(record + kQ6KPairs + 128 * b, lane, code, 4);
    }
    for (int half = 0; half < 2; ++half) {
      const int sub = 2 * b + half;
      // At most 256 * 32 * 127 * 128 < 2^27 in all.
      sum += static_cast<std::int8_t>(scales[16 * sub + lane]) *
             (x.minus32_sum[sub] + dot(code + 16 * half, x.q + 16 * sub, 16));
    }
  }
  return std::fma(static_cast<float>(sum) * d, x.scale, y);
}

float float_weight(WeightType type, const std::uint8_t* record, int lane) {
  if (type == WeightType::kF16) return half_at(record, lane);
  if (type == WeightType::kBF16) return bfloat_to_float(get16(record, lane));
  float v;
  std::memcpy(&v, record + 4 * lane, 4);
  return v;
}

float output(const PackedMatrix& w, const std::uint8_t* group, int lane, const Activations::Impl& x,
             std::int64_t row) {
  const std::uint8_t* tail = group + tail_offset(w.type, w.n_in);
  const std::int64_t tile = row / kActivationTile * kActivationTile;
  const std::int64_t width = x.n_rows - tile < kActivationTile ? x.n_rows - tile : kActivationTile;
  const std::int64_t n_blocks = w.n_in / weight_block_values(w.type);
  float y = 0;
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    if (wants_block32(w.type)) {
      y = row_block32(w.type, group, tail, lane, x.tile32(tile)[b * width + row - tile], y);
    } else if (wants_block256(w.type)) {
      const Record256& record = x.tile256(tile)[b * width + row - tile];
      if (w.type == WeightType::kQ2_K) {
        y = row_q2_k(group, lane, record, y);
      } else if (w.type == WeightType::kQ4_K || w.type == WeightType::kQ5_K) {
        y = row_min_k(w.type, group, lane, record, y);
      } else {
        y = row_signed_k(w.type, group, tail, lane, record, y);
      }
    } else {
      y = std::fma(float_weight(w.type, group, lane), x.x[row * x.stride + b], y);
    }
    group += record_bytes(w.type);
    tail += tail_bytes(w.type);
  }
  return y;
}

}  // namespace

void linear_groups_scalar(const LinearTask& task, std::int64_t first_group,
                          std::int64_t last_group) {
  const PackedMatrix& w = task.w;
  for (std::int64_t g = first_group; g < last_group; ++g) {
    const auto* group = reinterpret_cast<const std::uint8_t*>(w.data) +
                        static_cast<std::size_t>(g) * group_bytes(w.type, w.n_in);
    for (std::int64_t row = 0; row < task.x->n_rows; ++row) {
      for (int lane = 0; lane < kPackRows && g * kPackRows + lane < w.n_out; ++lane) {
        const std::int64_t o = g * kPackRows + lane;
        const float y = output(w, group, lane, *task.x, row);
        task.y[row * task.y_stride + o] = task.bias != nullptr ? y + task.bias[o] : y;
      }
    }
  }
}

}  // namespace foretoken::kernels
