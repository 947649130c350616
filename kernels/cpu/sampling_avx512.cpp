#include "sampling_body.h"

namespace foretoken::kernels {

const SamplingFunctions& sampling_avx512() { return kFunctions; }

}  // namespace foretoken::kernels
