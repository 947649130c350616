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

void AcceptanceEstimator::Beta::update(bool hit) {
  if (trials >= kMemory) {
    const float keep = 1.0f - 1.0f / kMemory;
    hits *= keep;
    trials *= keep;
  }
  hits += hit ? 1.0f : 0.0f;
  trials += 1.0f;
}

AcceptanceEstimator::AcceptanceEstimator() {
  for (auto& claim : groups_) {
    for (auto& group : claim) {
      for (int form = 0; form < kForms; ++form) refresh(group, form);
    }
  }
}

int AcceptanceEstimator::bin_of(float raw) {
  return static_cast<int>(std::upper_bound(kEdges.begin(), kEdges.end(), raw) - kEdges.begin());
}

int AcceptanceEstimator::form_of(Form form) {
  // Below .01: fifteen misses in a row from the middle. Traffic that accepts now and then is rarely
  // there, traffic that accepts nothing always, so its cells learn to keep quiet without spoiling
  // the others.
  constexpr std::array<float, kForms - 1> kFormEdges = {0.01f, 0.1f, 0.3f, 0.55f, 0.8f};
  return static_cast<int>(std::upper_bound(kFormEdges.begin(), kFormEdges.end(), form.rate()) -
                          kFormEdges.begin());
}

void AcceptanceEstimator::refresh(Group& group, int form) {
  const auto f = static_cast<std::size_t>(form);
  // Pool adjacent violators: the weighted least-squares non-decreasing curve through the cells'
  // means.
  struct Block {
    float mean, weight;
    int width;
  };
  std::array<Block, kBins> blocks;
  int n = 0;
  for (int bin = 0; bin < kBins; ++bin) {
    const auto b = static_cast<std::size_t>(bin);
    const float low = bin == 0 ? 0.0f : kEdges[b - 1];
    const float high = bin == kBins - 1 ? 1.0f : kEdges[b];
    const float over_forms = group.bins[b].mean(0.5f * (low + high), kRawStrength);
    Block block{group.cells[f][b].mean(over_forms, kBinStrength),
                group.cells[f][b].trials + kBinStrength, 1};
    while (n > 0 && blocks[static_cast<std::size_t>(n - 1)].mean >= block.mean) {
      const Block& left = blocks[static_cast<std::size_t>(--n)];
      const float weight = left.weight + block.weight;
      block.mean = (left.mean * left.weight + block.mean * block.weight) / weight;
      block.weight = weight;
      block.width += left.width;
    }
    blocks[static_cast<std::size_t>(n++)] = block;
  }
  auto out = group.curve[f].begin();
  for (int i = 0; i < n; ++i) {
    out = std::fill_n(out, blocks[static_cast<std::size_t>(i)].width,
                      blocks[static_cast<std::size_t>(i)].mean);
  }
}

float AcceptanceEstimator::estimate(Claim claim, float raw, Form form, bool sampled) const {
  return group(claim, sampled)
      .curve[static_cast<std::size_t>(form_of(form))][static_cast<std::size_t>(bin_of(raw))];
}

float AcceptanceEstimator::estimate_blind(Claim claim, Form form, bool sampled) const {
  return group(claim, sampled)
      .blind[static_cast<std::size_t>(form_of(form))]
      .mean(kBlindPrior, kRawStrength);
}

void AcceptanceEstimator::update(Claim claim, float raw, Form form, bool sampled, bool accepted) {
  Group& g = group(claim, sampled);
  const auto f = static_cast<std::size_t>(form_of(form));
  const auto b = static_cast<std::size_t>(bin_of(raw));
  g.bins[b].update(accepted);
  g.cells[f][b].update(accepted);
  g.blind[f].update(accepted);
  ++g.observations;
  refresh(g, static_cast<int>(f));
}

std::int64_t AcceptanceEstimator::observations(Claim claim) const {
  return group(claim, false).observations + group(claim, true).observations;
}

}  // namespace foretoken
