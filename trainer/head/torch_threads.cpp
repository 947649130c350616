#include "trainer/head/torch_headers.h"
#include "trainer/learner/learner.h"

namespace foretoken::trainer {

void set_torch_threads(int threads) {
  at::set_num_threads(threads);
  at::set_num_interop_threads(1);
}

}  // namespace foretoken::trainer
