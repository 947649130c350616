// Which model a file is, for all who must agree on it: server, trainer, traces, bundles.
#pragma once

#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/control.h"
#include "foretoken/protocol/result.h"
#include "runtime/files/gguf.h"

namespace foretoken {

// BLAKE2b over the metadata that decides the arithmetic and a digest of every tensor's bytes: the
// whole file is read once. Errors: kInternal.
Result<ModelFingerprint> fingerprint_of(const GgufFile& file, int drop_last_layers,
                                        kernels::ThreadPool& pool);

}  // namespace foretoken
