#include "runtime/speculate/acceptance_estimator.h"

#include <algorithm>

namespace foretoken {
namespace {

// A cell remembers about this many outcomes: a standard error of .03 at p = .3, enough to place a
// slot on the right side of its cost, and forgotten within a few requests of new traffic.
constexpr float kMemory = 256;
// Pseudo-observations. The raw confidence as its bin's prior is a guess (4); the bin over all forms
// is evidence (12), but the form of a sequence moves acceptance by more than the prior should hold
// back.
constexpr float kRawStrength = 4;
constexpr float kBinStrength = 12;
constexpr float kBlindPrior = 0.3f;

}  // namespace

AcceptanceEstimator::AcceptanceEstimator() {
  for (auto& claim : groups_) {
    for (auto& group : claim) {
      for (int form = 0; form < kForms; ++form) refresh(group, form);
    }
  }
}

int AcceptanceEstimator::bin_of(float raw) {
  return int(std::upper_bound(kEdges.begin(), kEdges.end(), raw) - kEdges.begin());
}

int AcceptanceEstimator::form_of(Form form) {
  // Below .01: fifteen misses in a row from the middle. Traffic that accepts now and then is rarely
  // there, traffic that accepts nothing always, so its cells learn to keep quiet without spoiling
  // the others.
  constexpr std::array<float, kForms - 1> kFormEdges = {0.01f, 0.1f, 0.3f, 0.55f, 0.8f};
  return int(std::upper_bound(kFormEdges.begin(), kFormEdges.end(), form.rate()) -
             kFormEdges.begin());
}

void AcceptanceEstimator::refresh(Group& group, int form) {
  const auto f = std::size_t(form);
  std::array<IsotonicFit<float>::Block, kBins> blocks;
  IsotonicFit<float> fit(blocks);
  for (int bin = 0; bin < kBins; ++bin) {
    const auto b = std::size_t(bin);
    const float low = bin == 0 ? 0.0f : kEdges[b - 1];
    const float high = bin == kBins - 1 ? 1.0f : kEdges[b];
    const float over_forms = group.bins[b].with_prior(0.5f * (low + high), kRawStrength);
    fit.add(group.cells[f][b].with_prior(over_forms, kBinStrength),
            group.cells[f][b].weight + kBinStrength);
  }
  fit.write(group.curve[f].begin());
}

float AcceptanceEstimator::estimate(Claim claim, float raw, Form form, bool sampled) const {
  return group(claim, sampled).curve[std::size_t(form_of(form))][std::size_t(bin_of(raw))];
}

float AcceptanceEstimator::estimate_blind(Claim claim, Form form, bool sampled) const {
  return group(claim, sampled)
      .blind[std::size_t(form_of(form))]
      .with_prior(kBlindPrior, kRawStrength);
}

void AcceptanceEstimator::update(Claim claim, float raw, Form form, bool sampled, bool accepted) {
  Group& g = group(claim, sampled);
  const auto f = std::size_t(form_of(form));
  const auto b = std::size_t(bin_of(raw));
  g.bins[b].add(accepted, kMemory);
  g.cells[f][b].add(accepted, kMemory);
  g.blind[f].add(accepted, kMemory);
  ++g.observations;
  refresh(g, int(f));
}

std::int64_t AcceptanceEstimator::observations(Claim claim) const {
  return group(claim, false).observations + group(claim, true).observations;
}

}  // namespace foretoken
