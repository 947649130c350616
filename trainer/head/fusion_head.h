// The fusion table as a torch module, and positions as tensors. One of the few headers that name
// torch.
#pragma once

#include <span>

#include "runtime/evaluate/fusion_replay.h"
#include "runtime/speculate/fusion_table.h"
#include "trainer/head/torch_headers.h"

namespace foretoken::trainer {

struct FusionBatch {
  torch::Tensor
      fusion_class;        // int64 [n, kMaxCandidates]; kFusionClasses where there is no candidate
  torch::Tensor token_of;  // int64 [n, kMaxCandidates]
  torch::Tensor token_mask;           // bool  [n, kMaxCandidates]: the distinct tokens that exist
  torch::Tensor p;                    // float [n, kMaxCandidates + 1], "other" last
  torch::Tensor inverse_temperature;  // float [n, 1]
};
FusionBatch make_batch(std::span<const FusionPosition> positions);

struct FusionHeadImpl : torch::nn::Module {
  explicit FusionHeadImpl(const FusionTable& initial);
  // log q, [n, kMaxCandidates + 1], "other" last; -inf where there is no token.
  torch::Tensor forward(const FusionBatch& batch);
  FusionTable table() const;
  void set_table(const FusionTable& table);

  torch::Tensor bias;   // float [kFusionClasses]
  torch::Tensor other;  // float [1]
};
TORCH_MODULE(FusionHead);

}  // namespace foretoken::trainer
