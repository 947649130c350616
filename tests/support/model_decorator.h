// A model that is another one but for what a subclass overrides: how tests break a law on purpose.
#pragma once

#include <memory>
#include <utility>

#include "runtime/model/model.h"

namespace foretoken::testing {

class ModelDecorator : public Model {
 public:
  explicit ModelDecorator(std::shared_ptr<const Model> inner) : inner_(std::move(inner)) {}
  const ModelConfig& config() const override { return inner_->config(); }
  KvGeometry kv_geometry() const override { return inner_->kv_geometry(); }
  const GgufFile& file() const override { return inner_->file(); }
  const std::array<std::uint8_t, 32>& fingerprint() const override { return inner_->fingerprint(); }
  std::size_t weight_bytes() const override { return inner_->weight_bytes(); }
  std::size_t step_bytes() const override { return inner_->step_bytes(); }
  std::int64_t step_macs() const override { return inner_->step_macs(); }
  std::unique_ptr<ForwardWorkspace> make_workspace(int max_rows,
                                                   int max_logit_rows) const override {
    return inner_->make_workspace(max_rows, max_logit_rows);
  }
  Result<std::unique_ptr<KvCache>> make_kv(
      const KvOptions& options, std::shared_ptr<const KvCalibration> calibration) const override {
    return inner_->make_kv(options, std::move(calibration));
  }
  std::unique_ptr<LogitRows> make_logit_rows(int max_rows,
                                             const kernels::PackedMatrix* output) const override {
    return inner_->make_logit_rows(max_rows, output);
  }
  std::unique_ptr<FeatureRows> make_feature_rows(std::span<const int> taps, int max_rows,
                                                 int slots) const override {
    return inner_->make_feature_rows(taps, max_rows, slots);
  }
  std::unique_ptr<HeadWorkspace> make_head_workspace(const HeadWeights& head,
                                                     int max_rows) const override {
    return inner_->make_head_workspace(head, max_rows);
  }
  void forward(const ForwardBatch& batch, SequenceMemory& memory, ForwardWorkspace& workspace,
               kernels::ThreadPool& pool) const override {
    inner_->forward(batch, memory, workspace, pool);
  }
  const kernels::PackedMatrix& output_matrix() const override { return inner_->output_matrix(); }
  void embedding(TokenId token, float* out) const override { inner_->embedding(token, out); }
  void output_matrix_of_attention(int layer, float* out) const override {
    inner_->output_matrix_of_attention(layer, out);
  }

 protected:
  const std::shared_ptr<const Model> inner_;
};

}  // namespace foretoken::testing
