// The engine: one thread owns sequences, pages, speculators and random numbers, and runs rounds:
// draft -> verify -> accept -> commit (one file a verb). Everything else talks to it through this
// class, whose methods any thread may call.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "foretoken/protocol/result.h"
#include "foretoken/protocol/trace_record.h"
#include "foretoken/protocol/transport.h"
#include "runtime/engine/request.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/observe/stats.h"
#include "runtime/speculate/registry.h"

namespace foretoken {

class Model;
struct DraftJob;
struct SpeculatorChoice;  // learned.h

enum class SpecSampling { kInvariant, kRejection };

struct EngineOptions {
  int threads = 0;  // 0: all cores
  int max_num_seqs = 8;
  // Prompt and output of one request. 0: the model's, at most 8192. Lowered to what the KV cache
  // holds: a draft needs no more, since it never passes the request's last token.
  std::int64_t max_model_len = 0;
  int max_batch_rows = 256;  // prefill chunk and verify rows of one round
  int max_queue = 256;
  std::size_t kv_cache_memory = 0;  // 0: a default from max_model_len and max_num_seqs
  KvMode kv_cache_dtype = KvMode::kInt2;
  KvMode draft_kv_cache_dtype = KvMode::kInt2;
  int kv_sink = 64, kv_window = 256;
  bool prefix_cache = true;
  // Of the pool, at most so much for 16-bit copies that only resuming needs. 0: half of it. A kept
  // prefix of 2,000 tokens is about as many bytes of sealed pages as its one tail.
  std::size_t prefix_tail_memory = 0;
  SpecType spec_type = foretoken::spec_type("auto");
  SpecSampling spec_sampling = SpecSampling::kInvariant;
  int spec_draft_n_max = 8;
  int spec_draft_n_fixed = -1;  // tests: this draft length always, -1: by measured cost
  // Tokens a draft model chooses among (draft_vocabulary.h); 0: its whole vocabulary. Of a mixed
  // log, 0.4 % of the tokens are outside of 24,576 when they come, of other text up to 3 %; Qwen2.5
  // has 151,936, whose rows are a third of a 0.5B draft step.
  std::int64_t spec_draft_vocab = 24576;
  double control_fraction =
      0.03;                   // rounds without speculation, by a coin tossed before the controller
  double plain_fraction = 0;  // share of time served plainly, for the net speedup (net_speedup.h)
  // Tests: sees what was drafted, may make trees of it.
  std::function<void(std::span<DraftJob>)> on_drafted;
  bool share_across_keys = false;  // traffic stores and kept pages
  // The layers whose outputs the learned head reads; none: head_taps() of the model.
  std::optional<std::array<int, 4>> head_taps;
};

// A key's traffic store, to outlive the process (traffic_store.h).
struct SavedTraffic {
  std::string key_id;  // "" is the shared one
  std::vector<std::byte> bytes;
};

// How many tokens a request may generate: what it asks for, or else the rest of the context. The
// one rule for clients of the API and of the engine. Errors: kOutOfRange (the prompt leaves no
// room, or not enough: both lengths in the message), kInvalidInput (max_tokens below 1).
Result<std::int64_t> token_limit(std::int64_t n_prompt, std::optional<std::int64_t> max_tokens,
                                 std::int64_t context);

// Where finished requests' traces go: called on the engine thread, must not block. May be empty.
using TraceSink = std::function<void(std::unique_ptr<RequestTrace>)>;

class Engine {
 public:
  // draft_model may be null. calibrations may be null in bf16 mode. The clock says what rounds
  // cost, and so what is drafted; it must outlive the engine.
  static Result<std::unique_ptr<Engine>> create(
      std::shared_ptr<const Model> model, std::shared_ptr<const KvCalibration> calibration,
      std::shared_ptr<const Model> draft_model,
      std::shared_ptr<const KvCalibration> draft_calibration, const EngineOptions& options,
      TraceSink trace_sink, const Clock& clock = system_clock());
  virtual ~Engine() = default;  // stops the thread; open requests end with kAborted

  virtual RequestId next_request_id() = 0;
  // Errors: those of token_limit() at options().max_model_len, kInvalidInput (the prompt is empty
  // or holds no tokens of the vocabulary), kUnavailable (queue full or draining). The sink sees no
  // event then.
  virtual Status submit(EngineRequest request) = 0;
  virtual void cancel(RequestId id) = 0;  // its pages are free within one round; idempotent
  // As cancel(), but its client has all it wanted (a stop string): a whole request, kept and
  // traced.
  virtual void stop(RequestId id) { cancel(id); }
  virtual void drain() = 0;       // refuse new requests; open ones finish
  virtual bool idle() const = 0;  // nothing running, nothing waiting

  // Hot swap: takes effect between two rounds, for open requests too. The weights were checked by
  // the caller. Those that leave are destroyed on a caller's thread, never between two rounds.
  virtual void set_learned(SpeculatorChoice choice) = 0;

  // The traffic stores, as they are between two rounds: save_traffic and restore_traffic wait for
  // the engine's thread, which a store keeps for tens of ms: before the first request, after the
  // last. restore_traffic: the errors of what does not fit, one a store; the others are restored.
  // forget_traffic: empties a key's store, at once, and drops the pages kept of its requests;
  // those under way leave none.
  virtual std::vector<SavedTraffic> save_traffic() { return {}; }
  virtual std::vector<Error> restore_traffic(std::vector<SavedTraffic>) { return {}; }
  virtual void forget_traffic(const std::string&) {}

  // A window of plain serving is running: the trainer should pause. Any thread, costs nothing.
  virtual bool plain_now() const { return false; }
  // There are requests to run. Any thread, without a lock.
  virtual bool serving() const { return false; }
  // Seconds spent in rounds since the start. Any thread, costs nothing.
  virtual double busy_s() const { return 0; }
  virtual EngineStats stats() const = 0;       // a consistent copy; never blocks a round for long
  virtual double heartbeat_age_s() const = 0;  // since the engine thread last turned; readiness
  virtual const EngineOptions& options() const = 0;  // with defaults filled in
};

}  // namespace foretoken
