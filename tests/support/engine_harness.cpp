#include "tests/support/engine_harness.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "runtime/speculate/head/eagle3_head.h"
#include "runtime/speculate/head/initial_head.h"
#include "tests/support/eagle3_maker.h"
#include "tests/support/swapping_model.h"

namespace foretoken::testing {

HarnessResult run_engine(const HarnessModels& models, const EngineOptions& options,
                         const std::vector<HarnessRequest>& requests, int in_flight) {
  HarnessResult result;
  result.outputs.resize(requests.size());
  result.finish.resize(requests.size(), FinishReason::kError);
  result.cached.resize(requests.size(), 0);
  result.predicted_ms.resize(requests.size(), 0);
  std::mutex mutex;
  std::condition_variable changed;
  std::size_t done = 0;
  Engine* running = nullptr;
  std::size_t swaps = 0;
  LearnedPointer served = models.learned ? models.learned : initial_weights();
  const auto swap = [&] {
    served = models.swap_to.empty() ? disturbed(*served, swaps)
                                    : models.swap_to[swaps % models.swap_to.size()];
    ++swaps;
    running->set_learned({served, models.canary, models.canary_fraction});
  };
  std::shared_ptr<const Model> model = models.model;
  if (models.swap_every_rounds > 0)
    model = std::make_shared<SwappingModel>(model, models.swap_every_rounds, swap);
  auto engine = Engine::create(
      model, models.calibration, models.draft, models.draft_calibration, options,
      [&](std::unique_ptr<RequestTrace> trace) {
        std::lock_guard lock(mutex);
        result.traces.push_back(std::move(trace));
      },
      *models.clock);
  if (!engine) {
    ADD_FAILURE() << engine.error().message;
    return result;
  }
  running = engine->get();
  if (models.learned)
    (*engine)->set_learned({models.learned, models.canary, models.canary_fraction});
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (in_flight > 0) {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return i < done + std::size_t(in_flight); });
    }
    EngineRequest r;
    r.id = (*engine)->next_request_id();
    r.prompt = requests[i].prompt;
    r.sampling = requests[i].sampling;
    r.max_tokens = requests[i].max_tokens;
    r.speculation = requests[i].speculation;
    r.stop_tokens = requests[i].stop_tokens;
    r.key_id = requests[i].key_id;
    r.trace = requests[i].trace;
    r.sink = [&, i](EngineEvent&& event) {
      std::lock_guard lock(mutex);
      result.outputs[i].insert(result.outputs[i].end(), event.tokens.begin(), event.tokens.end());
      result.cached[i] = event.timings.cached_n;
      result.predicted_ms[i] = event.timings.predicted_ms;
      if (event.finish) {
        result.finish[i] = *event.finish;
        ++done;
        changed.notify_all();
      }
    };
    const Status status = (*engine)->submit(std::move(r));
    if (!status) {
      ADD_FAILURE() << status.error().message;
      return result;
    }
  }
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return done == requests.size(); });
  }
  // The statistics of the last round are published when the engine goes idle.
  for (int i = 0; i < 200 && !(*engine)->idle(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  result.stats = (*engine)->stats();
  return result;
}

namespace {

std::vector<TokenId> vocabulary_of(std::span<const TokenId> text, std::size_t n_vocab) {
  std::set<TokenId> ids;
  for (const TokenId token : text) {
    if (ids.size() < n_vocab) ids.insert(token);
  }
  for (TokenId token = 0; ids.size() < n_vocab; ++token) ids.insert(token);
  return {ids.begin(), ids.end()};
}

}  // namespace

std::shared_ptr<const LearnedWeights> untrained_head(std::shared_ptr<const Model> model,
                                                     std::span<const TokenId> text,
                                                     std::int64_t inner, std::size_t n_vocab,
                                                     std::uint64_t seed, std::uint64_t version) {
  const std::vector<TokenId> vocab = vocabulary_of(text, n_vocab);
  const std::int64_t hidden = model->config().hidden;
  auto rows = VocabularyRows::of(std::move(model));
  if (!rows) {
    ADD_FAILURE() << rows.error().message;
    return nullptr;
  }
  HeadParts parts = initial_head(hidden, inner, vocab, seed);
  parts.gain = 0.4f;  // so that the features decide as well as the candidates
  auto head = RecurrentHead::create(parts, *rows);
  if (!head) {
    ADD_FAILURE() << head.error().message;
    return nullptr;
  }
  auto weights = std::make_shared<LearnedWeights>();
  weights->version.value = version;
  weights->head = *head;
  return weights;
}

std::shared_ptr<const LearnedWeights> untrained_eagle3(std::shared_ptr<const Model> model,
                                                       std::span<const TokenId> text,
                                                       std::size_t n_vocab, std::uint64_t seed,
                                                       std::uint64_t version) {
  const ModelConfig& config = model->config();
  RandomEagle3 random = tiny_eagle3();
  random.seed = seed;
  random.n_layers = config.n_layers;
  random.vocab = vocabulary_of(text, n_vocab);
  random.config.hidden = random.config.target_hidden = config.hidden;
  random.config.ffn = std::max<std::int64_t>(32, config.hidden / 4 / 32 * 32);
  random.config.n_vocab = config.n_vocab;
  random.config.n_draft_vocab = std::int64_t(n_vocab);
  const HeadTaps taps = head_taps(config.n_layers);
  random.config.layer_ids = {{taps[0] + 1, taps[1] + 1, taps[2] + 1}};
  auto rows = VocabularyRows::of(std::move(model));
  if (!rows) {
    ADD_FAILURE() << rows.error().message;
    return nullptr;
  }
  // Candidates as a head that was trained with them has them.
  HeadTerms terms = HeadTerms::none((*rows)->hidden());
  terms.bias = initial_head((*rows)->hidden(), 32, random.vocab, seed).bias;
  terms.outside = 0;
  auto head = Eagle3Head::create(random_eagle3(random), terms, *rows);
  if (!head) {
    ADD_FAILURE() << head.error().message;
    return nullptr;
  }
  auto weights = std::make_shared<LearnedWeights>();
  weights->version.value = version;
  weights->head = *head;
  return weights;
}

}  // namespace foretoken::testing
