// Which positions the next optimiser step learns from, and how hard: a head's chains begin at
// generated tokens of logged requests. Fresh requests come once, in their order; then, as many
// passes over a token as are wanted, replays drawn from the whole buffer, by request or by domain.
// What the head says of fresh chains tells whether traffic has changed, the gate's verdicts whether
// there is more to gain: passes and learning rate follow. No torch. One thread. Deterministic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "trainer/examples/domains.h"
#include "trainer/examples/drift_detector.h"
#include "trainer/examples/head_example.h"
#include "trainer/learner/learner.h"
#include "trainer/learner/state_map.h"
#include "trainer/objective/objective.h"

namespace foretoken::trainer {

// What the heads' learners have in common.
struct StepOptions {
  double learning_rate = 0;  // of a recurrent head 0: by the target's hidden width
  int warmup_steps = 10;
  double clip = 1;              // of the gradient's norm
  double average_decay = 0.97;  // of the moving average that is served
  int tokens_per_step = 270;
  int unroll = 3;
  double step_weight = 0.8;  // of step i: step_weight^i
  const Objective* objective = &objectives().front();
  // Of the teacher of a greedy request. Nearer 0 more of the loss is about what is emitted; at 0
  // nothing is left of what else the target thought likely, and learning is slower.
  double teacher_temperature = 0.5;
  // Passes over a token; and once the gate finds nothing more in what is learned: in a candidate
  // that has seen converged_growth times as much as the last that was promoted.
  double passes = 4, converged_passes = 1, converged_growth = 4;
  // To a head that has seen fewer all traffic is new: none is a change, none is known well enough.
  std::int64_t early_tokens = 10000;
  // After a change of traffic (drift_detector.h; 0: none is looked for): for so many tokens other
  // passes, at a learning rate so much higher.
  std::int64_t drift_tokens = 6000;
  double drift_passes = 8, drift_learning_rate = 1.5;
  // Of n requests of a domain, a replay is of it with a chance that goes with n to this power: 1,
  // all requests alike; 0, all domains alike.
  double domain_power = 1;
  // One slice of work: 30 to 50 ms of a core for the 135M's head in fp32.
  int chains_per_slice = 64;
  std::uint64_t seed = 1;
};

// A piece of a request: chains from these generated tokens on.
struct Piece {
  std::uint64_t sequence;
  std::int64_t start, count;
};
// All the chains of a request.
inline Piece starts_of(std::uint64_t sequence, const HeadExample& example) {
  return {sequence, example.first, example.n_starts()};
}

class StepSchedule {
 public:
  // The chains that a request offers, from generated token `start` on; nullopt: none.
  using StartsOf = std::function<std::optional<Piece>(std::uint64_t sequence)>;

  StepSchedule(const StepOptions& options, const TraceSource& source)
      : options_(options), source_(source) {}

  // A new request; `starts` is what it offers, or nothing.
  void observe(std::uint64_t sequence, std::optional<Piece> starts, std::int64_t tokens,
               std::uint64_t domain = 0);
  // Takes the pieces of the next step. With many fresh requests waiting it gives up replaying: what
  // is new teaches more. False: no step is due.
  bool begin(std::size_t fresh_waiting, const StartsOf& starts_of);
  // Of the step under way: at most `room` chains more; nullopt: all are taken.
  std::optional<Piece> take(std::int64_t room);
  bool under_way() const { return at_ < batch_.size(); }
  bool fresh() const { return is_fresh_; }
  // Of a chain of a fresh step: what the head, before it learned from it, gave its first choice,
  // and whether that was what came.
  void watch(std::uint64_t domain, double predicted, bool accepted);
  // The step under way is done.
  void end();
  std::int64_t tokens() const { return tokens_; }  // of all requests that offered something

  // Traffic has changed, not long ago.
  bool hurried() const { return tokens_ < hurry_until_; }
  // Of the step under way.
  double learning_rate() const {
    return options_.learning_rate * (hurried() ? options_.drift_learning_rate : 1.0);
  }
  // Learner::judged. What was learned early on, before traffic changed, or from hardly more than
  // what serves, says nothing of what is still to be gained.
  void judged(std::int64_t trained_tokens, bool gained);
  bool converged() const { return converged_; }

  // A step under way is begun again: what it has computed is not kept.
  void save(StateMap& map, const std::string& name) const;
  bool restore(const StateMap& map, const std::string& name);  // false: damaged

 private:
  std::uint64_t draw();
  double draw_uniform() { return double(draw() >> 11) * 0x1p-53; }
  std::optional<std::uint64_t> draw_request();  // one that has something to learn from

  const StepOptions options_;
  const TraceSource& source_;
  std::deque<Piece> fresh_;
  std::int64_t fresh_chains_ = 0, tokens_ = 0;
  // What may be replayed: numbers of requests, ascending, by domain in the order of their coming.
  struct Domain {
    std::uint64_t name = 0;
    std::deque<std::uint64_t> requests = {};
  };
  std::vector<Domain> domains_;
  // What was watched of a domain in the step under way.
  struct Watched {
    std::uint64_t domain;
    double predicted, accepted, positions;
  };
  std::vector<Watched> watched_;
  DriftDetector drift_;
  std::int64_t hurry_until_ = 0;
  std::int64_t proven_tokens_ = 0;  // that the last promoted candidate had seen
  bool converged_ = false;
  std::uint64_t draws_ = 0;
  double owed_chains_ = 0;
  std::vector<Piece> batch_;  // of the step under way
  std::size_t at_ = 0;
  std::int64_t taken_ = 0;  // chains of batch_[at_]
  bool is_fresh_ = true;
};

}  // namespace foretoken::trainer
