#include "trainer/head/fusion_head.h"

#include <limits>

namespace foretoken::trainer {

FusionBatch make_batch(std::span<const FusionPosition> positions) {
  const auto n = static_cast<std::int64_t>(positions.size());
  FusionBatch batch;
  batch.fusion_class = torch::full({n, kMaxCandidates}, kFusionClasses, torch::kInt64);
  batch.token_of = torch::zeros({n, kMaxCandidates}, torch::kInt64);
  batch.token_mask = torch::zeros({n, kMaxCandidates}, torch::kBool);
  batch.p = torch::zeros({n, kMaxCandidates + 1});
  batch.inverse_temperature = torch::ones({n, 1});
  auto* fusion_class = batch.fusion_class.data_ptr<std::int64_t>();
  auto* token_of = batch.token_of.data_ptr<std::int64_t>();
  auto* mask = batch.token_mask.data_ptr<bool>();
  auto* p = batch.p.data_ptr<float>();
  auto* inverse_temperature = batch.inverse_temperature.data_ptr<float>();
  for (const FusionPosition& position : positions) {
    for (int c = 0; c < position.n_candidates; ++c) {
      fusion_class[c] = position.fusion_class[std::size_t(c)];
      token_of[c] = position.token_of[std::size_t(c)];
    }
    for (int t = 0; t < position.n_tokens; ++t) {
      mask[t] = true;
      p[t] = position.p[std::size_t(t)];
    }
    p[kMaxCandidates] = position.p_other;
    *inverse_temperature++ = position.inverse_temperature;
    fusion_class += kMaxCandidates;
    token_of += kMaxCandidates;
    mask += kMaxCandidates;
    p += kMaxCandidates + 1;
  }
  return batch;
}

FusionHeadImpl::FusionHeadImpl(const FusionTable& initial)
    : bias(register_parameter("bias", torch::zeros({kFusionClasses}))),
      other(register_parameter("other", torch::zeros({1}))) {
  set_table(initial);
}

torch::Tensor FusionHeadImpl::forward(const FusionBatch& batch) {
  const auto padded = torch::cat({bias, torch::zeros({1})});  // the absent candidate adds nothing
  const auto contributions =
      padded.index_select(0, batch.fusion_class.flatten()).view_as(batch.fusion_class);
  const auto scores = torch::zeros({batch.fusion_class.size(0), kMaxCandidates})
                          .scatter_add(1, batch.token_of, contributions)
                          .masked_fill(~batch.token_mask, -std::numeric_limits<float>::infinity());
  const auto logits =
      torch::cat({scores, other.expand({scores.size(0), 1})}, 1) * batch.inverse_temperature;
  return torch::log_softmax(logits, 1);
}

FusionTable FusionHeadImpl::table() const {
  FusionTable table;
  std::copy_n(bias.data_ptr<float>(), kFusionClasses, table.bias.begin());
  table.other = *other.data_ptr<float>();
  return table;
}

void FusionHeadImpl::set_table(const FusionTable& table) {
  std::copy(table.bias.begin(), table.bias.end(), bias.data_ptr<float>());
  *other.data_ptr<float>() = table.other;
}

}  // namespace foretoken::trainer
