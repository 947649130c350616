#include "elementwise_body.h"

namespace foretoken::kernels {

const ElementwiseFunctions& elementwise_avx512() { return kFunctions; }

}  // namespace foretoken::kernels
