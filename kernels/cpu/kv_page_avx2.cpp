#include "kernels/cpu/kv_page_seal.h"

namespace foretoken::kernels {

void seal_page_avx2(const std::byte* hot, const KvTransform& transform, int d,
                    std::byte* sealed) {
  seal_page_impl(hot, transform, d, sealed);
}

}  // namespace foretoken::kernels
