// Runs requests through a real Engine, in process, and collects what they emitted.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/model/model.h"

namespace foretoken::testing {

struct HarnessRequest {
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  int max_tokens = 64;
  bool speculation = true;
  std::vector<TokenId> stop_tokens;
};

struct HarnessResult {
  std::vector<std::vector<TokenId>> outputs;  // as emitted, one a request
  std::vector<FinishReason> finish;
  std::vector<std::unique_ptr<RequestTrace>> traces;
  EngineStats stats;
};

struct HarnessModels {
  std::shared_ptr<const Model> model;
  std::shared_ptr<const KvCalibration> calibration;
  std::shared_ptr<const Model> draft;  // may be null
  std::shared_ptr<const KvCalibration> draft_calibration;
};

// Submits all requests at once, `in_flight` of them open at a time (0: all). Fails the current test
// on error.
HarnessResult run_engine(const HarnessModels& models, const EngineOptions& options,
                         const std::vector<HarnessRequest>& requests, int in_flight = 0);

}  // namespace foretoken::testing
