// What a KV mode costs in quality, measured through the real cache: teacher-forced windows of text,
// the same tokens once per case and once with bf16 pages; the change of perplexity, the mean KL
// divergence KL(bf16 || case), and how often the most likely token is the same, over the scored
// positions. Offline: allocates and runs the model many times.
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
#include "runtime/model/sequence_memory.h"

namespace foretoken {

class Model;

struct KvQualityCase {
  std::string name;
  KvMode mode = KvMode::kInt2;
  std::shared_ptr<const KvCalibration> calibration;  // of modes that have one
};

struct KvQualityWindow {
  std::string name;  // of the text it is from
  std::vector<TokenId> tokens;
};

struct KvQualityOptions {
  int sink_tokens = 64, window_tokens = 256;
  int first_scored = 512;  // position within a window; earlier ones have read few sealed pages
  // Steps of one row at the end of the longest window, to time decoding at that depth; each mode in
  // turn, so that what else the machine does falls on all of them.
  int timed_steps = 16;
};

// Neighbouring positions err together: standard errors are those of the means of blocks of
// kQualityBlock scored positions of one window.
inline constexpr int kQualityBlock = 128;
struct MeanEstimate {
  double value = 0, standard_error = 0;
};

struct KvQualityFigures {
  std::int64_t n_scored = 0;  // predictions
  double perplexity_bf16 = 0, perplexity = 0;
  MeanEstimate perplexity_change;  // perplexity / perplexity_bf16 - 1
  MeanEstimate kl;                 // nats
  MeanEstimate same_top;           // share of positions
};

struct KvQuality {
  std::string name;
  KvMode mode = KvMode::kBf16;
  KvQualityFigures all;
  std::vector<KvQualityFigures> windows;  // in the order given
  std::int64_t sealed_page_reads = 0;     // 0 would mean that nothing was measured
  // Of the pool, while the longest window was held; a sealed page is what a token costs beyond sink
  // and window.
  std::int64_t context_tokens = 0;
  std::size_t allocated_bytes = 0;
  double sealed_bytes_per_token = 0;
  double prefill_tokens_per_s = 0, decode_tokens_per_s = 0;
};

// The first result is bf16 itself, against itself; then the cases in their order. windows: each at
// least first_scored + 2 long. progress may be null.
Result<std::vector<KvQuality>> measure_kv_quality(const Model& model,
                                                  std::span<const KvQualityWindow> windows,
                                                  std::span<const KvQualityCase> cases,
                                                  const KvQualityOptions& options,
                                                  kernels::ThreadPool& pool,
                                                  std::function<void(double)> progress);

// Logits of so many rows are held at once.
inline constexpr int kQualityChunkRows = 64;

// A cache of one sequence for each case, with room for `tokens` and `max_rows` rows a pass.
Result<std::vector<std::unique_ptr<SequenceMemory>>> make_quality_caches(
    const Model& model, std::span<const KvQualityCase> cases, const KvQualityOptions& options,
    std::int64_t tokens, int max_rows);

}  // namespace foretoken
