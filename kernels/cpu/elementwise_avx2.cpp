#include "elementwise_body.h"

namespace foretoken::kernels {

const ElementwiseFunctions& elementwise_avx2() { return kFunctions; }

}  // namespace foretoken::kernels
