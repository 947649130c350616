#include "runtime/speculate/proposal.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "foretoken/kernels/sampling.h"
#include "runtime/speculate/candidates.h"

namespace foretoken {

namespace {

// Tokens of context that led to a candidate of this class: 1..4, or 5 for 5 and more.
constexpr int matched(std::uint8_t fusion_class) {
  return fusion_class < kOwnClasses
             ? fusion_class + 1
             : TrafficStore::kMinOrder +
                   (fusion_class - kOwnClasses) / (kProbabilityBuckets * kCountBuckets);
}

// Before any was seen: an own-context match comes true more often the longer it is; a traffic
// continuation as often as it did before, less for what one or two sightings prove.
float prior(std::uint8_t fusion_class) {
  constexpr std::array<float, kOwnClasses> kOwn = {0.12f, 0.25f, 0.4f, 0.5f, 0.65f};
  if (fusion_class < kOwnClasses) return kOwn[fusion_class];
  constexpr std::array<float, kProbabilityBuckets> kProbability = {0.1f, 0.3f, 0.5f, 0.8f, 0.95f};
  constexpr std::array<float, kCountBuckets> kShrink = {0.35f, 0.5f, 0.7f, 0.85f};
  const auto rest = std::size_t(fusion_class - kOwnClasses);
  return kProbability[rest / kCountBuckets % kProbabilityBuckets] * kShrink[rest % kCountBuckets];
}

}  // namespace

Proposal propose_ngram(const CandidateList& candidates) {
  if (candidates.empty()) return {};
  const Candidate& first = candidates[0];
  // The list begins with the own context's, then traffic from the longest order down.
  const bool both = first.fusion_class < kOwnClasses && candidates.size() > 1;
  const bool take_traffic =
      both && matched(candidates[1].fusion_class) > matched(first.fusion_class);
  const Candidate& chosen = take_traffic ? candidates[1] : first;
  return {chosen.token, prior(chosen.fusion_class), chosen.fusion_class, true,
          SpeculatorKind::kNgram};
}

Proposal propose_fusion(const CandidateList& candidates, const FusionTable& table,
                        const SamplingParams& sampling, std::int64_t position, bool coupled) {
  if (candidates.empty()) return {};
  TokenScores scores;
  for (const Candidate& c : candidates) scores.of(c.token, 0) += table.bias[c.fusion_class];
  for (const auto& [token, bias] : sampling.logit_bias) scores.add_bias(token, bias);

  const bool noisy = coupled && sampling.temperature > 0;
  const float inv_temperature = sampling.temperature > 0 ? 1.0f / sampling.temperature : 1.0f;
  TokenId best = -1;
  double best_score = 0;
  for (const auto& [token, summed] : scores) {
    double score = double(summed * inv_temperature);
    if (noisy)
      score += kernels::gumbel(sampling.seed, std::uint64_t(position), std::uint32_t(token));
    if (best < 0 || score > best_score || (score == best_score && token < best)) {
      best = token;
      best_score = score;
    }
  }
  const double other = double(table.other * inv_temperature);
  Proposal proposal{best, 0, 0, false, SpeculatorKind::kFusion};
  if (noisy) {
    proposal.raw = float(std::exp(-std::exp(std::min(other - best_score, 50.0))));
  } else {
    const double top = std::max(best_score, other);
    double sum = std::exp(other - top);
    for (const TokenScore& s : scores) sum += std::exp(double(s.score * inv_temperature) - top);
    proposal.raw = float(std::exp(best_score - top) / sum);
  }
  return proposal;
}

}  // namespace foretoken
