// The engine: one thread owns sequences, pages, speculators and random numbers, and runs rounds:
// draft -> verify -> accept -> commit (one file a verb). Everything else talks to it through this
// class, whose methods any thread may call.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "foretoken/protocol/result.h"
#include "foretoken/protocol/trace_record.h"
#include "runtime/engine/request.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/observe/stats.h"

namespace foretoken {

class Model;
class FusionTable;

enum class SpecType { kNone, kNgram, kModel, kHead, kAuto };
enum class SpecSampling { kInvariant, kRejection };

// Negative controls: each breaks law 1 in one way that its test must catch. Never set by a flag.
enum class EngineFault { kNone, kAcceptFirstDraft, kBatchDependentKernel, kSealDrafted };

struct EngineOptions {
  int threads = 0;  // 0: all cores
  int max_num_seqs = 8;
  std::int64_t max_model_len = 0;  // 0: the model's, at most 8192
  int max_batch_rows = 256;        // prefill chunk and verify rows of one round
  int max_queue = 256;
  std::size_t kv_cache_memory = 0;  // 0: a default from max_model_len and max_num_seqs
  KvMode kv_cache_dtype = KvMode::kInt2;
  KvMode draft_kv_cache_dtype = KvMode::kInt2;
  int kv_sink = 64, kv_window = 256;
  SpecType spec_type = SpecType::kAuto;
  SpecSampling spec_sampling = SpecSampling::kInvariant;
  int spec_draft_n_max = 8;
  int spec_draft_n_fixed = -1;  // tests: this draft length always, -1: by measured cost
  double control_fraction =
      0.03;                   // rounds without speculation, by a coin tossed before the controller
  int swap_every_rounds = 0;  // tests: swap the fusion table (to itself, perturbed) every n rounds
  bool share_across_keys = false;
  EngineFault fault = EngineFault::kNone;
};

// Where finished requests' traces go: called on the engine thread, must not block. May be empty.
using TraceSink = std::function<void(std::unique_ptr<RequestTrace>)>;

class Engine {
 public:
  // draft_model may be null. calibrations may be null in bf16 mode.
  static Result<std::unique_ptr<Engine>> create(
      std::shared_ptr<const Model> model, std::shared_ptr<const KvCalibration> calibration,
      std::shared_ptr<const Model> draft_model,
      std::shared_ptr<const KvCalibration> draft_calibration, const EngineOptions& options,
      TraceSink trace_sink);
  virtual ~Engine() = default;  // stops the thread; open requests end with kAborted

  virtual RequestId next_request_id() = 0;
  // Errors: kOutOfRange (prompt + max_tokens over max_model_len, or over the whole pool: both
  // lengths in the message), kUnavailable (queue full or draining). The sink sees no event then.
  virtual Status submit(EngineRequest request) = 0;
  virtual void cancel(RequestId id) = 0;  // its pages are free within one round; idempotent
  virtual void drain() = 0;               // refuse new requests; open ones finish
  virtual bool idle() const = 0;          // nothing running, nothing waiting

  // Hot swap: takes effect between two rounds. The table was checked by the caller.
  virtual void swap_fusion(std::shared_ptr<const FusionTable> table, SpeculatorVersion version) = 0;

  virtual EngineStats stats() const = 0;       // a consistent copy; never blocks a round for long
  virtual double heartbeat_age_s() const = 0;  // since the engine thread last turned; readiness
  virtual const EngineOptions& options() const = 0;  // with defaults filled in
};

}  // namespace foretoken
