#include "sampling_body.h"

namespace foretoken::kernels {

const SamplingFunctions& sampling_avx2() { return kFunctions; }

}  // namespace foretoken::kernels
