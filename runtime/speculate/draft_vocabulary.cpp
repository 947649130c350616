#include "runtime/speculate/draft_vocabulary.h"

#include <algorithm>
#include <cassert>
#include <numeric>

#include "foretoken/protocol/failure.h"

namespace foretoken {
namespace {

// Of a long prompt's new tokens as many as its last ones have: more would push each other out.
constexpr std::size_t kMaxWaiting = 1024;

}  // namespace

Result<std::unique_ptr<DraftVocabulary>> DraftVocabulary::create(std::shared_ptr<const Model> model,
                                                                 std::int64_t n_tokens) {
  const kernels::PackedMatrix& whole = model->output_matrix();
  assert(n_tokens % kernels::kPackRows == 0 && n_tokens >= 2 * kernels::kPackRows &&
         n_tokens < whole.n_out);
  std::unique_ptr<DraftVocabulary> self(new DraftVocabulary);
  if (!self->rows_.allocate(whole.type, n_tokens, whole.n_in))
    return failure(ErrorCode::kOutOfRange, "no memory for {} output rows", n_tokens);
  self->rows_.packed.device = whole.device;
  self->model_ = std::move(model);
  self->tokens_.resize(std::size_t(n_tokens));
  std::iota(self->tokens_.begin(), self->tokens_.end(), 0);
  self->slot_of_.assign(std::size_t(whole.n_out), kAbsent);
  std::iota(self->slot_of_.begin(), self->slot_of_.begin() + n_tokens, 0);
  kernels::gather_rows(whole, self->tokens_.data(), n_tokens, self->rows_.packed, 0);
  const auto n_seen =
      std::max<std::int64_t>(1, std::int64_t(double(n_tokens) * kSeenShare) / kernels::kPackRows) *
      kernels::kPackRows;
  self->first_seen_slot_ = self->next_slot_ = n_tokens - n_seen;
  self->waiting_.reserve(kMaxWaiting);
  return self;
}

void DraftVocabulary::see(std::span<const TokenId> tokens) {
  for (const TokenId token : tokens) {
    std::int32_t& slot = slot_of_[std::size_t(token)];
    if (slot != kAbsent || waiting_.size() == kMaxWaiting) continue;
    slot = kWaiting;
    waiting_.push_back(token);
  }
}

void DraftVocabulary::refresh(int max_groups) {
  constexpr std::int64_t kGroup = kernels::kPackRows;
  std::size_t taken = 0;
  for (int g = 0; g < max_groups && taken < waiting_.size(); ++g) {
    const std::int64_t group = next_slot_ / kGroup * kGroup;
    for (; next_slot_ < group + kGroup && taken < waiting_.size(); ++next_slot_, ++taken) {
      TokenId& slot = tokens_[std::size_t(next_slot_)];
      slot_of_[std::size_t(slot)] = kAbsent;
      slot = waiting_[taken];
      slot_of_[std::size_t(slot)] = std::int32_t(next_slot_);
    }
    kernels::gather_rows(model_->output_matrix(), &tokens_[std::size_t(group)], kGroup,
                         rows_.packed, group);
    if (next_slot_ == std::int64_t(tokens_.size())) next_slot_ = first_seen_slot_;
  }
  waiting_.erase(waiting_.begin(), waiting_.begin() + std::ptrdiff_t(taken));
}

}  // namespace foretoken
