// What trains a learned head, whatever its architecture: shown each request once, works in slices,
// adds its weights to a bundle. SpeculatorLearner holds one, beside the fusion table's. One thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/trace_record.h"
#include "trainer/learner/state_map.h"

namespace foretoken::trainer {

class HeadTrainer {
 public:
  virtual ~HeadTrainer() = default;

  // False: what was learned so far is of other hidden states (the server taps other layers now),
  // and a new one begins with this request.
  virtual bool goes_on_with(const RequestTrace&) const { return true; }
  virtual void observe(std::uint64_t sequence, const RequestTrace& trace) = 0;
  virtual bool work(std::size_t fresh_waiting) = 0;  // one slice; false: nothing is due
  virtual void judged(std::int64_t trained_tokens, bool gained) = 0;

  // False before the first step: there is nothing to serve.
  virtual bool trained() const = 0;
  // Adds the averaged weights, as they would be served, to a bundle that has the fusion table; its
  // kind becomes the head's (runtime/speculate/head/registry.h).
  virtual void add_to(Bundle& bundle) const = 0;
  virtual std::int64_t step() const = 0;
  virtual double loss() const = 0;  // moving average, nats a position; NaN before the first step
  virtual std::int64_t chains() const = 0;  // trained on so far, every pass counted

  virtual void save(StateMap& map) const = 0;
  // Of a new one. kInvalidInput: of other shapes; it is then of no more use.
  virtual Status restore(const StateMap& map) = 0;
};

}  // namespace foretoken::trainer
