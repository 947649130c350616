// One implementation an ISA of foretoken/kernels/peak.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foretoken::kernels {

using SumWords = std::uint64_t (*)(const std::byte* data,
                                   std::size_t bytes);  // bytes: a multiple of 512
// `iterations` times kInt8Chains independent vectors; returns the multiply-adds done.
using Int8Spin = std::int64_t (*)(std::int64_t iterations, std::int32_t* sink);
// Latency 5 times two a cycle on the widest machines, with room.
inline constexpr int kInt8Chains = 12;

std::uint64_t sum_words_scalar(const std::byte* data, std::size_t bytes);
std::uint64_t sum_words_avx2(const std::byte* data, std::size_t bytes);
std::uint64_t sum_words_avx512(const std::byte* data, std::size_t bytes);
std::int64_t int8_spin_scalar(std::int64_t iterations, std::int32_t* sink);
std::int64_t int8_spin_avx2(std::int64_t iterations, std::int32_t* sink);
std::int64_t int8_spin_avx512(std::int64_t iterations, std::int32_t* sink);
std::int64_t int8_spin_avx512_vnni(std::int64_t iterations, std::int32_t* sink);
std::int64_t int8_spin_avx512_amx(std::int64_t iterations, std::int32_t* sink);

}  // namespace foretoken::kernels
