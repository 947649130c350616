#include "activations.h"

#include <new>

#include "kernels/cpu/cpu_ops.h"

namespace foretoken::kernels {
namespace {

constexpr std::align_val_t kAlignment{64};

std::byte* allocate(std::size_t bytes) {
  return static_cast<std::byte*>(::operator new(bytes == 0 ? 64 : bytes, kAlignment));
}

}  // namespace

Activations::Activations(std::int64_t max_rows, std::int64_t max_in)
    : impl_(std::make_unique<Impl>()) {
  const auto rows = static_cast<std::size_t>(max_rows);
  const auto in = static_cast<std::size_t>(max_in);
  impl_->max_rows = max_rows;
  impl_->max_in = max_in;
  impl_->data32 = allocate(rows * (in / 32) * sizeof(Record32));
  // A tile of fewer rows than 16 is read as if it had 16 (linear_avx512_amx.cpp).
  impl_->data256 = allocate((rows * (in / 256) + kActivationTile) * sizeof(Record256));
}

Activations::~Activations() {
  ::operator delete(impl_->data32, kAlignment);
  ::operator delete(impl_->data256, kAlignment);
}

void Activations::set(const float* x, std::int64_t n_rows, std::int64_t n_in, std::int64_t stride,
                      bool block32, bool block256, ThreadPool& pool) {
  Impl& a = *impl_;
  a.x = x;
  a.n_rows = n_rows;
  a.n_in = n_in;
  a.stride = stride;
  a.has32 = block32;
  a.has256 = block256;
  if (!block32 && !block256) return;
  const ElementwiseOps& ops = cpu_ops().elementwise;
  auto rows = [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t tile = r / kActivationTile * kActivationTile;
      const std::int64_t width = n_rows - tile < kActivationTile ? n_rows - tile : kActivationTile;
      if (block32) {
        auto* out = reinterpret_cast<Record32*>(a.data32) + tile * (n_in / 32) + (r - tile);
        ops.quantize_row32(x + r * stride, n_in, out, width);
      }
      if (block256) {
        auto* out = reinterpret_cast<Record256*>(a.data256) + tile * (n_in / 256) + (r - tile);
        ops.quantize_row256(x + r * stride, n_in, out, width);
      }
    }
  };
  // Waking a worker costs more than quantising a few rows (about 1 us per thousand values).
  constexpr std::int64_t kSerialValues = 16384;
  if (n_rows * n_in <= kSerialValues) {
    rows(0, n_rows, 0);
  } else {
    pool.ranges(n_rows, 1, rows);
  }
}

}  // namespace foretoken::kernels
