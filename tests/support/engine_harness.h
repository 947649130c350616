// Runs requests through a real Engine, in process, and collects what they emitted.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/model/model.h"
#include "runtime/speculate/learned.h"

namespace foretoken::testing {

struct HarnessRequest {
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  int max_tokens = 64;
  bool speculation = true;
  std::vector<TokenId> stop_tokens;
  std::string key_id;
  bool trace = true;
};

struct HarnessResult {
  std::vector<std::vector<TokenId>> outputs;  // as emitted, one a request
  std::vector<FinishReason> finish;
  std::vector<std::int64_t> cached;  // prompt tokens found in the prefix cache, one a request
  std::vector<double> predicted_ms;  // of decoding, one a request
  std::vector<std::unique_ptr<RequestTrace>> traces;
  EngineStats stats;
};

struct HarnessModels {
  std::shared_ptr<const Model> model;
  std::shared_ptr<const KvCalibration> calibration;
  std::shared_ptr<const Model> draft;  // may be null
  std::shared_ptr<const KvCalibration> draft_calibration;
  // Served from the first round on; null: as shipped. canary may be null.
  std::shared_ptr<const LearnedWeights> learned, canary;
  double canary_fraction = 0;
  // Every so many rounds (0: never) others serve: the next of swap_to, or, where that is empty, the
  // last ones with their fusion table disturbed. Outputs must not notice (law 1).
  int swap_every_rounds = 0;
  std::vector<std::shared_ptr<const LearnedWeights>> swap_to;
  const Clock* clock = &system_clock();
};

// Submits all requests at once, `in_flight` of them open at a time (0: all). Fails the current test
// on error.
HarnessResult run_engine(const HarnessModels& models, const EngineOptions& options,
                         const std::vector<HarnessRequest>& requests, int in_flight = 0);

// A head that was not trained, in the model's shapes, useful as the n-gram candidates are: its
// vocabulary is the tokens of `text` and as many of the lowest ids as fill n_vocab.
std::shared_ptr<const LearnedWeights> untrained_head(std::shared_ptr<const Model> model,
                                                     std::span<const TokenId> text,
                                                     std::int64_t inner, std::size_t n_vocab,
                                                     std::uint64_t seed, std::uint64_t version);

// The same for an EAGLE-3 head with random weights, two query heads and a quarter of the model's
// width inside, that reads the layers that are tapped by default.
std::shared_ptr<const LearnedWeights> untrained_eagle3(std::shared_ptr<const Model> model,
                                                       std::span<const TokenId> text,
                                                       std::size_t n_vocab, std::uint64_t seed,
                                                       std::uint64_t version);

}  // namespace foretoken::testing
