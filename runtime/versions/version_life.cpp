#include "runtime/versions/version_life.h"

#include <algorithm>

#include "foretoken/protocol/failure.h"

namespace foretoken {
namespace {

// A peer with a valid key may send refusable versions without end: those past this many are counted
// and named in /stats, but not written to the disk.
constexpr int kMaxRefusalsLogged = 100;

}  // namespace

HeldVersion held_of(const Bundle& bundle, LearnedPointer weights) {
  return {bundle.version, bundle.parent,           std::move(weights),    bundle.kind,
          bundle.verdict, bundle.trained_requests, bundle.trained_tokens, bundle.loss};
}

VersionLife::VersionLife(HeldVersion shipped, LineageState known)
    : shipped_(std::move(shipped)), served_(shipped_), known_(std::move(known)) {}

// Of what has happened to `held`, the state being what it is from now on.
LineageEvent VersionLife::event(std::string what, const HeldVersion& held, std::string reason) {
  LineageEvent e;
  e.event = std::move(what);
  e.version = held.version;
  e.parent = held.parent;
  e.served = served_.version;
  e.frozen = e.event == "frozen" || (known_.frozen && e.event != "unfrozen");
  if (held.version.value > 0 && held.weights) {
    e.kind = held.kind;
    e.trained_requests = held.trained_requests;
    e.trained_tokens = held.trained_tokens;
    e.loss = held.loss;
    e.verdict = held.verdict;
  }
  e.reason = std::move(reason);
  known_.apply(e);
  return e;
}

LineageEvent VersionLife::judged_event(std::string what, const HeldVersion& held,
                                       std::string reason, const PairedSums& judged, double alpha) {
  LineageEvent e = event(std::move(what), held, std::move(reason));
  if (judged.requests > 0) {
    e.judged_requests = judged.requests;
    e.gain = judged.gain();
    e.low = lower_bound(judged, alpha / 2);
    e.high = upper_bound(judged, alpha / 2);
  }
  return e;
}

LineageEvent VersionLife::superseded(const HeldVersion& held, SpeculatorVersion by) {
  return event("superseded", held, fmt::format("by version {}", by.value));
}

LineageEvents VersionLife::give(HeldVersion held, std::string source) {
  served_ = std::move(held);
  return {event("given", served_, std::move(source))};
}

LineageEvents VersionLife::lose(SpeculatorVersion version, std::string reason) {
  return {event("damaged", {.version = version}, std::move(reason))};
}

LineageEvents VersionLife::wait(HeldVersion held) {
  LineageEvents events;
  if (waiting_) events.push_back(superseded(*waiting_, held.version));
  waiting_ = std::move(held);
  return events;
}

VersionLife::Offer VersionLife::offered(SpeculatorVersion v) {
  if (v.value == 0)
    return {false, failure(ErrorCode::kInvalidInput, "version: found 0, wanted above 0")};
  if (v == served_.version || (canary_ && canary_->version == v) ||
      (waiting_ && waiting_->version == v))
    return {false, Ok{}};
  if (known_.banned.contains(v.value)) {
    refuse(v, "version: it was rolled back or refused before");
    return {false, failure(ErrorCode::kInvalidInput,
                           "version: {} was rolled back or refused before, it is "
                           "never taken again",
                           v.value)};
  }
  // One that was lost on this disk may come again, but never in the place of a newer one.
  const SpeculatorVersion newest = std::max(served_.version, newest_tried());
  if (v <= known_.highest && (v < newest || !known_.lost.contains(v.value)))
    return {false, failure(ErrorCode::kInvalidInput, "version: found {}, wanted above {}", v.value,
                           known_.highest.value)};
  if (known_.frozen) {
    frozen_out_ = std::max(frozen_out_, v);
    refuse(v, "frozen: an operator has frozen the speculator");
    return {false, failure(ErrorCode::kInvalidInput,
                           "frozen: version {}: an operator has frozen the "
                           "speculator",
                           v.value)};
  }
  return {true, Ok{}};
}

LineageEvents VersionLife::refused(const HeldVersion& held, const std::string& reason) {
  LineageEvents events;
  if (refusals_logged_++ < kMaxRefusalsLogged) events.push_back(event("refused", held, reason));
  refuse(held.version, reason);
  return events;
}

LineageEvents VersionLife::received(HeldVersion held) {
  LineageEvents events{event("received", held, "")};
  std::ranges::move(wait(std::move(held)), std::back_inserter(events));
  news_ = true;
  return events;
}

LineageEvents VersionLife::begin(double canary_fraction) {
  if (!waiting_ || canary_ || known_.frozen) return {};
  canary_ = std::exchange(waiting_, std::nullopt);
  if (canary_fraction <= 0) return promote("without a canary", {}, 1);
  news_ = true;
  return {event("canary", *canary_,
                fmt::format("on {:.0f} % of requests, against version {}", 100 * canary_fraction,
                            served_.version.value))};
}

LineageEvents VersionLife::promote(std::string reason, const PairedSums& judged, double alpha) {
  previous_ = std::move(served_);
  served_ = std::move(*canary_);
  canary_.reset();
  ++promotions_;
  news_ = true;
  return {judged_event("promoted", served_, std::move(reason), judged, alpha)};
}

LineageEvents VersionLife::roll_back_canary(std::string reason, const PairedSums& judged,
                                            double alpha) {
  const HeldVersion bad = std::move(*canary_);
  canary_.reset();
  ++rollbacks_;
  not_wanted(bad.version, reason);
  return {judged_event("rolled_back", bad, std::move(reason), judged, alpha)};
}

LineageEvents VersionLife::roll_back_served(std::string reason, const PairedSums& judged,
                                            double alpha) {
  const HeldVersion bad = std::move(served_);
  served_ = previous_ ? std::move(*previous_) : shipped_;
  previous_.reset();
  ++rollbacks_;
  not_wanted(bad.version, reason);
  return {judged_event("rolled_back", bad, std::move(reason), judged, alpha)};
}

// It was never shown to be bad, but the operator wants nothing newer for now.
LineageEvents VersionLife::drop_waiting(const std::string& reason) {
  if (!waiting_) return {};
  const HeldVersion held = std::move(*waiting_);
  waiting_.reset();
  not_wanted(held.version, reason);
  return {event("rolled_back", held, reason)};
}

LineageEvents VersionLife::freeze() {
  if (known_.frozen) return {};
  LineageEvents events;
  if (canary_) {
    // Starts over when unfrozen, unless a newer one waits already.
    if (waiting_)
      events.push_back(superseded(*canary_, waiting_->version));
    else
      waiting_ = std::move(canary_);
    canary_.reset();
  }
  events.push_back(event("frozen", served_, "by an operator"));
  return events;
}

LineageEvents VersionLife::unfreeze() {
  if (!known_.frozen) return {};
  // Let the trainer offer again what was refused for nothing but the freeze.
  if (refused_ == frozen_out_ && frozen_out_.value > 0) {
    refused_ = {};
    refused_reason_.clear();
  }
  frozen_out_ = {};
  news_ = true;
  return {event("unfrozen", served_, "by an operator")};
}

SpeculatorVersion VersionLife::newest_tried() const {
  SpeculatorVersion newest;
  if (canary_) newest = canary_->version;
  if (waiting_) newest = std::max(newest, waiting_->version);
  return newest;
}

void VersionLife::refuse(SpeculatorVersion version, std::string reason) {
  ++refusals_;
  refused_ = std::max(refused_, version);
  refused_reason_ = std::move(reason);
  news_ = true;
}

void VersionLife::not_wanted(SpeculatorVersion version, std::string reason) {
  refused_ = std::max(refused_, version);
  refused_reason_ = "rolled back: " + std::move(reason);
  news_ = true;
}

}  // namespace foretoken
