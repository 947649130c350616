#include "runtime/speculate/kind_calibration.h"

#include <algorithm>

namespace foretoken {
namespace {

// The form of traffic is that of the last hundred tokens or so.
constexpr float kTrafficStep = 0.01f;
// A class's rate is forgotten within a few hundred sightings, as the estimator's cells are.
constexpr float kClassMemory = 512, kClassPrior = 4;
// A head that is served has proved itself: it starts as if it found a sixth of what is missing. A
// gain of .05 stands out from its noise of .02.
constexpr float kLiftMemory = 512, kLiftPrior = 16;
constexpr std::array kLiftEdges = {0.05f, 0.15f, 0.3f, 0.5f, 0.7f, 0.9f};
static_assert(kLiftEdges.size() + 1 == kLiftBins);

// calls(claim, proposal) for each token that is named, as the first kind that names it claims it.
template <class Call>
void for_each_claim(const ProposalList& said, const Call& call) {
  for (std::size_t i = 0; i < said.size(); ++i) {
    bool first = true, with = false;
    for (std::size_t j = 0; j < said.size(); ++j) {
      if (j == i || said[j].token != said[i].token) continue;
      (j < i ? first : with) = j > i;
    }
    if (!first) continue;
    const Agreement agreement =
        said.size() == 1 ? Agreement::kAny : (with ? Agreement::kWith : Agreement::kAgainst);
    call(Claim{said[i].kind, agreement}, said[i]);
  }
}

std::size_t class_of(const Proposal& p) {
  return std::size_t(p.kind) * kProposalClasses + p.fusion_class;
}

std::size_t lift_bin(float cheap) {
  return std::size_t(std::ranges::upper_bound(kLiftEdges, cheap) - kLiftEdges.begin());
}

Claim head_claim(bool agrees) {
  return {SpeculatorKind::kHead, agrees ? Agreement::kWith : Agreement::kAny};
}

}  // namespace

// Each as sure as its class was right.
ProposalList KindCalibration::rated(const ProposalList& said, bool sampled) const {
  ProposalList rated = said;
  for (Proposal& p : rated)
    if (p.by_class) p.raw = rates_[class_of(p)][sampled].with_prior(p.raw, kClassPrior);
  return rated;
}

OfferList KindCalibration::offers(const DraftContext& of, const Forms& forms,
                                  const ProposalList& said, int depth) const {
  OfferList offers;
  for_each_claim(rated(said, of.sampled()), [&](Claim claim, const Proposal& p) {
    offers.push_back(
        {p.token, p.raw, estimate(of, forms, claim, p.raw, depth), p.kind, of.ends(p.token)});
  });
  return offers;
}

Offer KindCalibration::head_offer(const DraftContext& of, const Forms& forms, const Proposal& head,
                                  const Offer& cheap, bool alone, int depth) const {
  Offer offer{head.token, head.raw, 0, SpeculatorKind::kHead, of.ends(head.token)};
  offer.agrees = !alone && !cheap.empty() && head.token == cheap.token;
  offer.confidence = estimate(of, forms, head_claim(offer.agrees), head.raw, depth);
  return offer;
}

float KindCalibration::expect_head(const DraftContext& of, float cheap) const {
  const ForgettingMean& lift = lift_[of.sampled()][lift_bin(cheap)];
  return std::clamp(cheap + lift.with_prior((1 - cheap) / 6, kLiftPrior), 0.0f, 1.0f);
}

float KindCalibration::estimate(const DraftContext& of, const Forms& forms, Claim claim, float raw,
                                int depth) const {
  return acceptance_.estimate(claim, raw, forms[claim.index()].after_hits(depth), of.sampled());
}

float KindCalibration::expect(const DraftContext& of, const Forms& forms, Claim claim,
                              int depth) const {
  return acceptance_.estimate_blind(claim, forms[claim.index()].after_hits(depth), of.sampled());
}

void KindCalibration::score(const DraftContext& of, Forms& forms, Claim claim, float raw,
                            bool hit) {
  const std::size_t c = claim.index();
  acceptance_.update(claim, raw, forms[c], of.sampled(), hit);
  forms[c].update(hit);
  traffic_[of.sampled()][c].update(hit, kTrafficStep);
}

void KindCalibration::learn(const DraftContext& of, Forms& forms, const ProposalList& proposed,
                            TokenId token) {
  const ProposalList said = rated(proposed, of.sampled());
  for (const Proposal& p : said) score(of, forms, {p.kind}, p.raw, p.token == token);
  if (said.size() > 1) {
    for_each_claim(said, [&](Claim claim, const Proposal& p) {
      score(of, forms, claim, p.raw, p.token == token);
    });
  }
  for (const Proposal& p : said)
    if (p.by_class) rates_[class_of(p)][of.sampled()].add(p.token == token, kClassMemory);
}

void KindCalibration::learn_head(const DraftContext& of, Forms& forms,
                                 std::span<const HeadPosition> positions,
                                 std::span<const TokenId> emitted) {
  for (std::size_t d = 0; d < positions.size() && d < emitted.size(); ++d) {
    const auto& [head, drafted, cheap] = positions[d];
    score(of, forms, head_claim(head.agrees), head.raw, head.token == emitted[d]);
    lift_[of.sampled()][lift_bin(cheap.confidence)].add(
        float(drafted == emitted[d]) - float(cheap.token == emitted[d]), kLiftMemory);
    if (drafted != emitted[d]) return;
  }
}

}  // namespace foretoken
