// Random weights, activations and packed matrices for the kernel tests.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "foretoken/kernels/isa.h"
#include "foretoken/kernels/linear.h"

namespace foretoken::kernels {

inline constexpr auto kAllTypes = [] {
  std::array<WeightType, kWeightTypes> all{};
  for (int i = 0; i < kWeightTypes; ++i) all[static_cast<std::size_t>(i)] = kWeightFormats[i].type;
  return all;
}();

// Runs the scope on one instruction set and restores the previous one.
class ScopedIsa {
 public:
  explicit ScopedIsa(Isa isa) : before_(active_isa()) { set_isa(isa_name(isa)); }
  ~ScopedIsa() { set_isa(isa_name(before_)); }

 private:
  Isa before_;
};

inline std::uint16_t half_bits(std::mt19937_64& random) {
  // Of either sign, between 2^-9 and 2^-3.
  std::uniform_int_distribution<int> exponent(6, 11), mantissa(0, 1023), sign(0, 1);
  return static_cast<std::uint16_t>(sign(random) << 15 | exponent(random) << 10 | mantissa(random));
}

// Rows of random blocks: every code, scale and minimum is possible, floats are of ordinary size.
inline std::vector<std::byte> random_file_rows(WeightType type, std::int64_t n_rows,
                                               std::int64_t n_in, std::mt19937_64& random) {
  std::vector<std::byte> rows(static_cast<std::size_t>(n_rows) * weight_row_bytes(type, n_in));
  for (std::byte& b : rows) b = static_cast<std::byte>(random() & 255);
  auto put_half = [&](std::size_t at) {
    const std::uint16_t h = half_bits(random);
    std::memcpy(rows.data() + at, &h, 2);
  };
  std::normal_distribution<float> normal(0.0f, 0.05f);
  switch (type) {
    case WeightType::kF32:
      for (std::size_t i = 0; i < rows.size(); i += 4) {
        const float v = normal(random);
        std::memcpy(rows.data() + i, &v, 4);
      }
      break;
    case WeightType::kF16:
      for (std::size_t i = 0; i < rows.size(); i += 2) put_half(i);
      break;
    case WeightType::kBF16:
      for (std::size_t i = 0; i < rows.size(); i += 2) {
        const float v = normal(random);
        std::memcpy(rows.data() + i, reinterpret_cast<const char*>(&v) + 2, 2);
      }
      break;
    default: {
      const std::size_t block = weight_row_bytes(type, weight_block_values(type));
      for (std::size_t at = 0; at < rows.size(); at += block) {
        const std::size_t first = type == WeightType::kQ6_K   ? 208
                                  : type == WeightType::kQ3_K ? 108
                                  : type == WeightType::kQ2_K ? 80
                                                              : 0;
        put_half(at + first);
        if (type == WeightType::kQ4_1 || type == WeightType::kQ5_1 || type == WeightType::kQ2_K ||
            type == WeightType::kQ4_K || type == WeightType::kQ5_K)
          put_half(at + first + 2);
      }
    }
  }
  return rows;
}

struct OwnedMatrix {
  PackedMatrix w;
  std::vector<std::byte> file;
  struct Free {
    void operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Free> data;
};

inline OwnedMatrix random_matrix(WeightType type, std::int64_t n_out, std::int64_t n_in,
                                 std::mt19937_64& random) {
  OwnedMatrix m;
  m.file = random_file_rows(type, n_out, n_in, random);
  m.w.type = type;
  m.w.n_out = n_out;
  m.w.n_in = n_in;
  m.w.bytes = packed_bytes(type, n_out, n_in);
  m.data.reset(static_cast<std::byte*>(::operator new (m.w.bytes, std::align_val_t{64})));
  m.w.data = m.data.get();
  pack_rows(m.w, 0, n_out, m.file.data());
  return m;
}

// Normal values with a few large outliers, as hidden states have them, and an all-zero block.
inline std::vector<float> random_activations(std::int64_t n_rows, std::int64_t n_in,
                                             std::mt19937_64& random) {
  std::vector<float> x(static_cast<std::size_t>(n_rows * n_in));
  std::normal_distribution<float> normal(0.0f, 1.0f);
  for (float& v : x) {
    v = normal(random);
    if (random() % 97 == 0) v *= 30;
  }
  for (std::int64_t i = 0; i < 32 && i < n_in; ++i) x[static_cast<std::size_t>(i)] = 0;
  return x;
}

}  // namespace foretoken::kernels
