// A loaded model: configuration, packed weights and the forward pass. Weights are immutable and
// shared; the forward pass's buffers live in a ForwardWorkspace owned by its caller (the engine
// thread).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "foretoken/kernels/linear.h"
#include "foretoken/kernels/thread_pool.h"
#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "runtime/files/gguf.h"
#include "runtime/kv/kv_cache.h"
#include "runtime/model/config.h"
#include "runtime/model/feature_rows.h"
#include "runtime/model/head_workspace.h"
#include "runtime/model/logit_rows.h"
#include "runtime/model/sequence_memory.h"

namespace foretoken {

struct ModelLoadOptions {
  kernels::Device device = kernels::Device::kCpu;  // where its weights are and its passes run
  int threads = 0;
  int drop_last_layers = 0;  // a shallower draft from the same file (tests; self-speculation)
  std::function<void(double)> progress;  // 0..1
};

// One forward pass: all rows' tokens, grouped by sequence.
struct ForwardBatch {
  std::span<const TokenId> tokens;    // [n_rows]
  std::span<const KvRows> sequences;  // cover the rows exactly
  std::span<const int> logit_rows;    // rows whose logits are wanted, ascending
  LogitRows* logits = nullptr;        // of this model; gets logit_rows.size() rows
  // Rows of the output matrix to use instead of all of them (gathered from output_matrix()), or
  // null: its rows are the columns of `logits`. For drafts alone.
  const kernels::PackedMatrix* output = nullptr;
  FeatureRows* features = nullptr;  // of this model; gets every row's hidden states, or null
  KvObserver* observer = nullptr;   // sees q, k, v of every layer that has them, or null
};

class ForwardWorkspace;

class Model {
 public:
  static Result<std::shared_ptr<const Model>> load(const std::string& path,
                                                   const ModelLoadOptions& options);
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual KvGeometry kv_geometry() const = 0;
  virtual const GgufFile& file() const = 0;  // metadata stays mapped
  virtual const std::array<std::uint8_t, 32>& fingerprint()
      const = 0;                                 // BLAKE2b over metadata and tensor bytes' digest
  virtual std::size_t weight_bytes() const = 0;  // packed, in memory
  virtual std::size_t step_bytes() const = 0;    // of the file's format, read by a one-row step
  virtual std::int64_t step_macs() const = 0;    // multiply-adds of one row
  virtual std::unique_ptr<ForwardWorkspace> make_workspace(int max_rows,
                                                           int max_logit_rows) const = 0;
  // The memory that its forward pass reads and writes.
  Result<std::unique_ptr<SequenceMemory>> make_memory(
      const KvOptions& options, std::shared_ptr<const KvCalibration> calibration) const;
  // ... of it the KV cache of its layers, on its device.
  virtual Result<std::unique_ptr<KvCache>> make_kv(
      const KvOptions& options, std::shared_ptr<const KvCalibration> calibration) const = 0;
  // Memory of one sequence, in a pool as large as any mode can need for it.
  Result<std::unique_ptr<SequenceMemory>> make_memory_of_one(
      KvOptions options, std::shared_ptr<const KvCalibration> calibration) const;
  // output: what a batch's `output` will be, if not null. More rows than max_rows take more memory.
  virtual std::unique_ptr<LogitRows> make_logit_rows(
      int max_rows, const kernels::PackedMatrix* output = nullptr) const = 0;
  // slots: of rings, for the head. taps: kHeadTaps of them, if anything is logged or goes to a
  // ring.
  virtual std::unique_ptr<FeatureRows> make_feature_rows(std::span<const int> taps, int max_rows,
                                                         int slots) const = 0;
  virtual std::unique_ptr<HeadWorkspace> make_head_workspace(const HeadWeights& head,
                                                             int max_rows) const = 0;
  virtual void forward(const ForwardBatch& batch, SequenceMemory& memory,
                       ForwardWorkspace& workspace, kernels::ThreadPool& pool) const = 0;
  // Of one sequence: `batch` says all but which, its rows come at `first`.
  void forward_one(ForwardBatch batch, KvSequence sequence, std::int64_t first,
                   SequenceMemory& memory, ForwardWorkspace& workspace,
                   kernels::ThreadPool& pool) const;
  virtual const kernels::PackedMatrix& output_matrix() const = 0;  // [n_vocab, hidden]
  virtual void embedding(TokenId token, float* out) const = 0;     // [hidden], before any layer
  // [hidden, n_heads*head_dim], for calibration; of the KV cache's layers.
  virtual void output_matrix_of_attention(int kv_layer, float* out) const = 0;
};

class ForwardWorkspace {
 public:
  virtual ~ForwardWorkspace() = default;
};

}  // namespace foretoken
