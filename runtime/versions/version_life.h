// The life of learned versions as a pure state machine:
//
//   offered -> canary -> promoted (served) -> previous -> forgotten
//                  \-> rolled back           \-> served again, when its successor does worse
//
// It says what may come, what is next and what is told of it; which is better is decided elsewhere
// (version_trial.h), and files, clock, engine and lock are VersionKeeper's. Weights are carried,
// never looked at. Every transition returns the events that the lineage has to hold before it takes
// effect.
// Invariants: one canary at most, none while frozen; the newest of those that come meanwhile waits;
// no number is taken twice, and none that was rolled back or refused; known() is what the events
// fold to, so a restart that reads them goes on from the same state.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "foretoken/protocol/bundle.h"
#include "runtime/evaluate/sequential_test.h"
#include "runtime/speculate/learned.h"
#include "runtime/versions/lineage.h"

namespace foretoken {

struct HeldVersion {
  SpeculatorVersion version, parent;
  LearnedPointer weights;
  std::string kind = "none", verdict;
  std::int64_t trained_requests = 0, trained_tokens = 0;
  double loss = 0;
};
HeldVersion held_of(const Bundle& bundle, LearnedPointer weights);

using LineageEvents = std::vector<LineageEvent>;  // without a time

class VersionLife {
 public:
  VersionLife(HeldVersion shipped, LineageState known);

  // --- start-up: what the lineage says, as far as its bundles can be had
  LineageEvents give(HeldVersion held, std::string source);  // the operator's own: serves
  LineageEvents lose(SpeculatorVersion version, std::string reason);
  void serve(HeldVersion held) { served_ = std::move(held); }
  LineageEvents wait(HeldVersion held);  // was on trial or waited when the server ended

  // --- versions that come
  struct Offer {
    bool wanted = false;
    Status answer = Ok{};  // where it is not; Ok: it serves, is on trial or waits already
  };
  Offer offered(SpeculatorVersion version);
  LineageEvents refused(const HeldVersion& held, const std::string& reason);
  LineageEvents received(HeldVersion held);

  // --- the canary's life. begin() does nothing where none waits, one is on trial, or frozen.
  LineageEvents begin(double canary_fraction);
  LineageEvents promote(std::string reason, const PairedSums& judged, double alpha);
  LineageEvents roll_back_canary(std::string reason, const PairedSums& judged, double alpha);
  // The previous version serves again; the one before that is told with set_previous().
  LineageEvents roll_back_served(std::string reason, const PairedSums& judged, double alpha);
  void set_previous(std::optional<HeldVersion> held) { previous_ = std::move(held); }

  // --- operators
  LineageEvents drop_waiting(const std::string& reason);
  LineageEvents freeze();
  LineageEvents unfreeze();

  const HeldVersion& shipped() const { return shipped_; }
  const HeldVersion& served() const { return served_; }
  const std::optional<HeldVersion>& previous() const { return previous_; }
  const std::optional<HeldVersion>& canary() const { return canary_; }
  const std::optional<HeldVersion>& waiting() const { return waiting_; }
  const LineageState& known() const { return known_; }
  SpeculatorVersion newest_tried() const;  // on trial or waiting; 0: none
  SpeculatorVersion refused() const { return refused_; }
  const std::string& refused_reason() const { return refused_reason_; }
  std::int64_t promotions() const { return promotions_; }
  std::int64_t rollbacks() const { return rollbacks_; }
  std::int64_t refusals() const { return refusals_; }
  bool take_news() { return std::exchange(news_, false); }

 private:
  LineageEvent event(std::string what, const HeldVersion& held, std::string reason);
  LineageEvent judged_event(std::string what, const HeldVersion& held, std::string reason,
                            const PairedSums& judged, double alpha);
  LineageEvent superseded(const HeldVersion& held, SpeculatorVersion by);
  void refuse(SpeculatorVersion version, std::string reason);
  void not_wanted(SpeculatorVersion version, std::string reason);

  HeldVersion shipped_, served_;
  std::optional<HeldVersion> previous_;  // nullopt: nothing before it, it is version 0
  std::optional<HeldVersion> canary_, waiting_;
  LineageState known_;
  SpeculatorVersion refused_, frozen_out_;
  std::string refused_reason_;
  std::int64_t promotions_ = 0, rollbacks_ = 0, refusals_ = 0;
  int refusals_logged_ = 0;
  bool news_ = false;  // something changed that the trainer should hear of at once
};

}  // namespace foretoken
