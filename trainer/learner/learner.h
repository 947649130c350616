// What learns: the training session knows it by this interface alone, so that a simulation can put
// another in its place. No torch here. One thread.
//
// The session shows it every request once, in the order of the buffer, after the gate has scored
// it; the learner may read any request again from the buffer (TraceSource). Work is done in slices
// of tens of milliseconds, so that the link is served in between and a pause can begin at any time.
// Deterministic: the same requests in the same order from the same state give the same weights.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "foretoken/protocol/bundle.h"
#include "foretoken/protocol/result.h"
#include "foretoken/protocol/trace_record.h"

namespace foretoken::trainer {

// The buffer as a learner sees it.
class TraceSource {
 public:
  virtual ~TraceSource() = default;
  // nullopt: deleted as too old, or damaged.
  virtual std::optional<RequestTrace> trace(std::uint64_t sequence) const = 0;
  virtual std::uint64_t oldest_sequence() const = 0;
};

// Moving average of steps' losses, nats a position; NaN before the first.
struct SmoothedLoss {
  double value = std::numeric_limits<double>::quiet_NaN();
  void add(double mean) { value = std::isnan(value) ? mean : 0.95 * value + 0.05 * mean; }
};

struct LearnerFacts {
  std::int64_t step = 0;  // optimiser steps, of everything that is trained
  std::int64_t trained_tokens = 0,
               trained_requests = 0;  // seen at least once, trained on at least once
  std::int64_t positions = 0;         // of all passes together
  double loss = 0;  // moving average of the objective, nats a position; NaN before the first step
};

class Learner {
 public:
  virtual ~Learner() = default;

  // A request that came after all that were shown before.
  virtual void observe(std::uint64_t sequence, const RequestTrace& trace) = 0;
  // One slice. `fresh_waiting`: requests in the buffer that were not shown yet; with many of them
  // the learner gives up going over old ones again. false: nothing is due.
  virtual bool work(std::size_t fresh_waiting) = 0;

  // What the gate found of a snapshot that had learned from so many tokens: gained, it was
  // promoted; else what it gains over what serves, if anything, is too little to be shown.
  virtual void judged(std::int64_t trained_tokens, bool gained) = 0;

  // What would be served now: kind, tensors and training facts, unsigned and without a version.
  virtual Bundle snapshot() const = 0;
  virtual LearnerFacts facts() const = 0;

  // Everything needed to go on as if it had not stopped, at any time between two calls.
  virtual std::vector<std::byte> state() const = 0;
  // Errors: kInvalidInput; the learner is then as it was made.
  virtual Status restore(std::span<const std::byte> state) = 0;
};

using LearnerFactory = std::function<std::unique_ptr<Learner>(const TraceSource&)>;

// Torch's intra-op and inter-op threads; call once, before anything else of torch.
void set_torch_threads(int threads);

}  // namespace foretoken::trainer
