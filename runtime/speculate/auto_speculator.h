// `auto`: the speculators together, and each of them alone. Per draft position the cheap one
// (ngram, fusion) with the higher calibrated confidence; per round the draft model instead, when
// the controller expects its tokens to be worth its steps. With a subset of kinds it is that
// subset: --spec-type ngram, head, model are this class too. Engine thread. DraftSources is opened,
// committed and closed by the engine; open(), close() and observe() here reach the model speculator
// and the calibration of its confidences.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/speculate/controller.h"
#include "runtime/speculate/draft_sources.h"
#include "runtime/speculate/speculator.h"

namespace foretoken {

struct AutoSpeculatorOptions {
  bool ngram = true, fusion = true;
  Speculator* model = nullptr;  // not owned; null: none
  Controller* controller =
      nullptr;  // not owned; null: the model, if there is one, always drafts max_tokens
  int max_sequences = 8;
  int max_draft = 8;
};

class AutoSpeculator final : public Speculator {
 public:
  AutoSpeculator(DraftSources& sources, const AutoSpeculatorOptions& options);
  SpeculatorKind kind() const override;
  void open(const DraftContext& context) override;
  void close(int slot, bool aborted) override;
  void propose(std::span<DraftJob> jobs) override;
  void observe(const DraftOutcome& outcome) override;

  // Forward passes of the draft model in the last propose(), for the controller's cost of a step.
  int model_steps() const { return model_steps_; }

 private:
  void propose_cheap(std::span<DraftJob> jobs);
  void propose_model(std::span<DraftJob> jobs);

  DraftSources& sources_;
  AutoSpeculatorOptions options_;
  std::vector<std::int64_t> seen_;    // [max_sequences] by slot: tokens the draft model has read
  std::vector<std::int64_t> lags_;    // [jobs]
  std::vector<int> lengths_;          // [jobs]
  std::vector<std::size_t> chosen_;   // indices of jobs the model drafts for
  std::vector<DraftJob> model_jobs_;  // kept for their drafts' memory
  int model_steps_ = 0;
};

}  // namespace foretoken
