// The two bounds of a decode step, as work to be timed: reading memory, and int8 multiply-adds. A
// step of r rows takes at least max(bytes / read bandwidth, r * multiply-adds / int8 peak).
#pragma once

#include <cstddef>
#include <cstdint>

#include "foretoken/kernels/thread_pool.h"

namespace foretoken::kernels {

// Reads every byte once, each worker its own contiguous part, as the linear layers do. The sum of
// the 64-bit words (bytes is rounded down to a multiple of 512) is returned so that nothing can be
// left out.
std::uint64_t stream_sum(const std::byte* data, std::size_t bytes, ThreadPool& pool);

// Multiply-adds of unsigned by signed bytes into 32-bit sums as fast as the active ISA's linear
// layers could at best: from registers, nothing else to do. Returns how many were done; `sink`
// receives something computed.
std::int64_t int8_multiply_adds(std::int64_t iterations, ThreadPool& pool, std::int32_t* sink);

}  // namespace foretoken::kernels
