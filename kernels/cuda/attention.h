// Paged attention on a CUDA device: attention.h's operation over the very bytes of
// kv_page_layout.h. A prototype: the one kernel a CUDA backend stands or falls with
// (kernels/README.md has its figures). Compiled with FORETOKEN_CUDA alone.
//
// `call` and `call.sequences` are host memory; every pointer in them (q, out, hot, sealed and the
// slabs these name, transforms and the matrices these name) is device memory; slabs and offsets are
// multiples of 16 bytes. head_dim 64 or 128. Asynchronous on `stream`; allocates nothing. Law 1: a
// row's bits do not depend on the rows, sequences or launches it shares a call with.
#pragma once

#include <cuda_runtime_api.h>

#include "foretoken/kernels/attention.h"

namespace foretoken::kernels::cuda {

// The three kernels of a call, for measuring one alone.
enum AttentionStages { kPrepareQueries = 1, kAttendPages = 2, kMergeParts = 4, kAllStages = 7 };

std::size_t attention_scratch_bytes(const AttentionCall& call);
// `scratch` is device memory, 16-byte aligned, and in use until the stream has passed the call.
cudaError_t attention(const AttentionCall& call, std::byte* scratch, std::size_t scratch_bytes,
                      cudaStream_t stream, int stages = kAllStages);

}  // namespace foretoken::kernels::cuda
