#include "runtime/model/weights.h"

#include <sys/mman.h>

#include <cstdint>

namespace foretoken {

using kernels::WeightType;

namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

}  // namespace

WeightBuffer::WeightBuffer(std::size_t bytes) : bytes_(bytes) {
  // Where huge pages pay, on their border.
  const std::size_t border = bytes >= kHugePage ? kHugePage : 0, mapped = bytes + border;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;
  const std::shared_ptr<std::byte> mapping(static_cast<std::byte*>(memory),
                                           [mapped](std::byte* p) { munmap(p, mapped); });
  data_ = mapping;
  if (border == 0) return;
  const auto past = reinterpret_cast<std::uintptr_t>(memory) % border;
  data_ = {mapping, mapping.get() + (border - past) % border};
  madvise(data(), bytes, MADV_HUGEPAGE);
}

WeightArena::WeightArena(std::size_t bytes) : whole_(bytes) {}

WeightBuffer WeightArena::take(std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  if (!whole_.data_ || bytes > whole_.bytes_ - taken_) return WeightBuffer(bytes);
  WeightBuffer part;
  part.data_ = {whole_.data_, whole_.data() + taken_};
  part.bytes_ = bytes;
  taken_ = std::min(whole_.bytes_, taken_ + (bytes + kLine - 1) / kLine * kLine);
  return part;
}

bool Matrix::allocate(WeightType type, std::int64_t n_out, std::int64_t n_in, WeightArena* arena) {
  const std::size_t bytes = kernels::packed_bytes(type, n_out, n_in);
  buffer = arena ? arena->take(bytes) : WeightBuffer(bytes);
  packed = {type, kernels::Device::kCpu, n_out, n_in, buffer.data(), bytes};
  file_bytes = kernels::weight_row_bytes(type, n_in) * std::size_t(n_out);
  return buffer.data() != nullptr;
}

std::optional<WeightType> weight_type_of(std::uint32_t ggml_type) {
  return kernels::weight_type_of_ggml(ggml_type);
}

}  // namespace foretoken
