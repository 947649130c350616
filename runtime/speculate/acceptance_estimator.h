// From a speculator's raw confidence to P(accepted | everything before it was accepted), learned
// from outcomes: binned Beta posteriors with forgetting, by claim, temperature class, and
// *form*, the recent hit rate of that claim on that sequence. Form is what makes one table
// serve both a first draft position and the fifth (five hits in a row raise it), both a copy
// passage and fresh prose. Engine thread; nothing allocates.
//   estimate = isotonic in the raw bin; a cell's prior is its bin over all forms, the bin's prior
//   the raw confidence itself, so an unseen cell says what the speculator says.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "foretoken/protocol/ids.h"
#include "runtime/speculate/estimators.h"

namespace foretoken {

// What others say where a kind names a token: whatever they say, one at least names it too, or all
// that name one name another.
enum class Agreement : std::uint8_t { kAny, kWith, kAgainst };
inline constexpr int kAgreements = 3;

// Who says that a token will be accepted, and in what company: a calibration each.
struct Claim {
  SpeculatorKind kind = SpeculatorKind::kNone;
  Agreement agreement = Agreement::kAny;
  constexpr std::size_t index() const {
    return std::size_t(kind) * kAgreements + std::size_t(agreement);
  }
};
inline constexpr std::size_t kClaims = kSpeculatorKinds * kAgreements;

// A running hit rate of one claim on one sequence: x <- x + (hit - x) * step.
class Form {
 public:
  // A memory of about five tokens: a copied passage is recognised within three, left within three.
  static constexpr float kStep = 0.2f;
  // A sequence starts in the form of the traffic before it.
  explicit Form(float rate = 0.3f) : rate_(rate) {}
  void update(bool hit, float step = kStep) { rate_ += ((hit ? 1.0f : 0.0f) - rate_) * step; }
  Form after_hits(int n) const {
    Form form = *this;
    for (int i = 0; i < n; ++i) form.update(true);
    return form;
  }
  float rate() const { return rate_; }

 private:
  float rate_;
};

class AcceptanceEstimator {
 public:
  AcceptanceEstimator();

  float estimate(Claim claim, float raw, Form form, bool sampled) const;
  // Before anything is drafted: averaged over the raw confidences seen at this form.
  float estimate_blind(Claim claim, Form form, bool sampled) const;
  // One proposal whose preceding tokens were all right: was it right too?
  void update(Claim claim, float raw, Form form, bool sampled, bool accepted);

  std::int64_t observations(Claim claim) const;

 private:
  // Finer where decisions are made: a slot pays from about .08 (its share of a round) upwards.
  static constexpr std::array<float, 13> kEdges = {0.02f, 0.05f, 0.1f, 0.15f, 0.2f, 0.3f, 0.4f,
                                                   0.5f,  0.6f,  0.7f, 0.8f,  0.9f, 0.95f};
  static constexpr int kBins = int(kEdges.size()) + 1;
  static constexpr int kForms = 6;

  struct Group {                             // one claim at one temperature class
    std::array<ForgettingMean, kBins> bins;  // all forms
    std::array<std::array<ForgettingMean, kBins>, kForms> cells;  // [form][bin]
    std::array<ForgettingMean, kForms> blind;
    std::array<std::array<float, kBins>, kForms> curve;  // what estimate() reads
    std::int64_t observations = 0;
  };

  static int bin_of(float raw);
  static int form_of(Form form);
  static void refresh(Group& group, int form);
  Group& group(Claim claim, bool sampled) { return groups_[claim.index()][sampled ? 1 : 0]; }
  const Group& group(Claim claim, bool sampled) const {
    return groups_[claim.index()][sampled ? 1 : 0];
  }

  std::array<std::array<Group, 2>, kClaims> groups_;
};

}  // namespace foretoken
