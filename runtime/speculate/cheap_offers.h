// The speculators that propose position by position, as offers to the draft policy: they are
// DraftSources', which the engine opens, commits and closes. Portfolio adds those that run a model.
#pragma once

#include "runtime/speculate/draft_policy.h"
#include "runtime/speculate/draft_sources.h"

namespace foretoken {

class CheapOffers : public DraftOffers {
 public:
  CheapOffers(DraftSources& sources, SpecType kinds) : sources_(sources), kinds_(kinds) {}
  // The round's jobs, by the index that every call names.
  void begin_round(std::span<const DraftJob> jobs) { jobs_ = jobs; }

  OfferList offer_cheap(int job, std::span<const TokenId> drafted) override;
  float expect_head(int, float cheap) override { return cheap; }
  void begin_head(std::span<const std::uint8_t>) override {}
  void step_head(std::span<const TokenId>) override {}
  Offer offer_head(int, std::span<const TokenId>, const Offer&, bool) override { return {}; }
  void keep_head(std::span<const std::uint8_t>) override {}
  float expect_model(int, int) override { return 0; }
  void draft_model(std::span<const int>) override {}
  DraftTree* model_draft(int) override { return nullptr; }

 protected:
  const DraftContext& context(int job) const {
    return jobs_[static_cast<std::size_t>(job)].context;
  }
  static bool ends(const DraftContext& context, TokenId token);

  DraftSources& sources_;
  const SpecType kinds_;
  std::span<const DraftJob> jobs_;
};

}  // namespace foretoken
