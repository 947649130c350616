// What a KV mode costs in quality, measured through the real cache: teacher-forced windows of text,
// the same tokens once per case and once with bf16 pages; the change of perplexity and the mean KL
// divergence KL(bf16 || case) over the scored positions. Offline: allocates and runs the model many
// times.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "runtime/kv/kv_cache.h"

namespace foretoken {

class Model;

struct KvQualityCase {
  std::string name;
  std::shared_ptr<const KvCalibration> calibration;  // of an int2 cache
};

struct KvQualityOptions {
  int sink_tokens = 64, window_tokens = 256;
  int first_scored = 512;  // position within a window; earlier ones have read no INT2 page or few
};

struct KvQuality {
  std::string name;
  std::int64_t n_scored = 0;  // predictions
  double perplexity_bf16 = 0, perplexity = 0;
  double mean_kl = 0;                // nats
  double same_top = 0;               // share of positions with the same most likely token
  std::int64_t int2_page_reads = 0;  // 0 would mean that nothing was measured
  double perplexity_change() const { return perplexity / perplexity_bf16 - 1; }
};

// windows: token sequences, each at least first_scored + 2 long. progress may be null.
Result<std::vector<KvQuality>> measure_kv_quality(const Model& model,
                                                  std::span<const std::vector<TokenId>> windows,
                                                  std::span<const KvQualityCase> cases,
                                                  const KvQualityOptions& options,
                                                  kernels::ThreadPool& pool,
                                                  std::function<void(double)> progress);

}  // namespace foretoken
