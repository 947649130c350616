#include "runtime/speculate/cheap_offers.h"

#include <algorithm>

#include "runtime/speculate/cheap_choice.h"
#include "runtime/speculate/learned.h"

namespace foretoken {

bool CheapOffers::ends(const DraftContext& context, TokenId token) {
  return std::ranges::find(context.stop_tokens, token) != context.stop_tokens.end();
}

OfferList CheapOffers::offer_cheap(int job, std::span<const TokenId> drafted) {
  const DraftContext& of = context(job);
  const bool shipped = of.learned && of.learned->initial;
  const int depth = static_cast<int>(drafted.size());
  OfferList offers = cheap_offers(
      sources_.propose(of, drafted, shipped ? kinds_.unlearned() : kinds_),
      [&](Claim claim, float raw) { return sources_.calibrate(claim, of, raw, depth); });
  for (int i = 0; i < offers.n; ++i) {
    Offer& offer = offers.items[static_cast<std::size_t>(i)];
    offer.ends = ends(of, offer.token);
  }
  return offers;
}

}  // namespace foretoken
