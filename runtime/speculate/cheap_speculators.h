// The speculators that cost microseconds: `ngram` (a fixed rule) and `fusion` (tier 0 of the
// learned head). Thin: their state is DraftSources', which the engine opens, commits and closes;
// open(), close() and observe() here do nothing. Confidences are calibrated.
#pragma once

#include "runtime/speculate/cheap_choice.h"
#include "runtime/speculate/draft_sources.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {

class CheapSpeculator : public Speculator {
 public:
  explicit CheapSpeculator(DraftSources& sources) : sources_(sources) {}
  void open(const DraftContext&) override {}
  void close(const DraftContext&, bool) override {}
  void observe(const DraftOutcome&) override {}

 protected:
  DraftSources& sources_;
};

class NgramSpeculator : public CheapSpeculator {
 public:
  using CheapSpeculator::CheapSpeculator;
  SpeculatorKind kind() const override { return SpeculatorKind::kNgram; }
  void propose(std::span<DraftJob> jobs) override;
};

class FusionSpeculator : public CheapSpeculator {
 public:
  using CheapSpeculator::CheapSpeculator;
  SpeculatorKind kind() const override { return SpeculatorKind::kFusion; }
  void propose(std::span<DraftJob> jobs) override;
};

// Which of the cheap kinds may propose.
struct CheapKinds {
  bool ngram = false, fusion = false;
};

// The one of the allowed kinds to propose the token after `drafted`, by calibrated confidence;
// beside ngram an initial table proposes nothing (LearnedWeights::initial).
CheapChoice choose_cheap(DraftSources& sources, CheapKinds kinds, const DraftContext& context,
                         std::span<const TokenId> drafted);
// Goes on with a draft that holds with probability `survival` so far.
void extend_cheap(DraftSources& sources, CheapKinds kinds, DraftJob& job, float survival);

// Position by position the one of the two with the higher calibrated confidence, whatever the other
// speculators do: the cheap half of `auto`.
void propose_best(DraftSources& sources, std::span<DraftJob> jobs);

}  // namespace foretoken
