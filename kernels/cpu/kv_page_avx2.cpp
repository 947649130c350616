#include "kernels/cpu/kv_page_seal.h"

namespace foretoken::kernels {

void seal_page_avx2(const std::byte* hot, const KvFormat& format, const KvTransform& transform,
                    int d, std::byte* sealed) {
  seal_page_impl(hot, format, transform, d, sealed);
}

}  // namespace foretoken::kernels
