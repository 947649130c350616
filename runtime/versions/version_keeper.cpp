#include "runtime/versions/version_keeper.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "foretoken/kernels/splitmix64.h"
#include "foretoken/protocol/trace_size.h"
#include "runtime/speculate/learned.h"

namespace foretoken {
namespace {

constexpr std::size_t kKeptVersions = 16;  // proven bundles on disk: what rollbacks can reach
constexpr std::size_t kShownEvents = 50;
constexpr double kShownAlpha = 0.025;  // of each side of an interval that is shown: 95 %
// A peer with a valid key may send refusable versions without end: those past this many are counted
// and named in /stats, but not written to the disk.
constexpr int kMaxRefusalsLogged = 100;
// Live costs wait for a partner of the other arm: a little more than the fraction's imbalance.
constexpr std::size_t kMaxUnpaired = 64;
constexpr int kLeastLivePairs = 8;       // of requests of both arms before a promotion
constexpr double kLiveDeviations = 2.5;  // one in a hundred and fifty good ones waits for more

Error refusal(const char* reason, std::string text) {
  return Error{ErrorCode::kInvalidInput, fmt::format("{}: {}", reason, text)};
}

GainFigures figures(const PairedSums& sums) {
  GainFigures f;
  f.requests = sums.requests;
  f.gain = sums.gain();
  f.low = lower_bound(sums, kShownAlpha);
  f.high = upper_bound(sums, kShownAlpha);
  return f;
}

// A stable choice by request, so that the same traffic is watched however often it is looked at.
bool sampled(RequestId request, double fraction) {
  std::uint64_t state = request.value;
  return kernels::next_uniform(state) < fraction;
}

}  // namespace

Result<std::unique_ptr<VersionKeeper>> VersionKeeper::create(const VersionKeeperOptions& options,
                                                             LearnedPointer shipped,
                                                             std::optional<StateDir> state,
                                                             const Clock& clock) {
  Lineage lineage;
  if (state) {
    auto opened = Lineage::open(state->lineage_path());
    if (!opened) return opened.error();
    lineage = std::move(opened).value();
    if (lineage.skipped() > 0)
      spdlog::warn("{}: {} damaged lines skipped", state->lineage_path().string(),
                   lineage.skipped());
  }
  return std::unique_ptr<VersionKeeper>(
      new VersionKeeper(options, std::move(shipped), std::move(state), std::move(lineage), clock));
}

VersionKeeper::VersionKeeper(const VersionKeeperOptions& options, LearnedPointer shipped,
                             std::optional<StateDir> state, Lineage lineage, const Clock& clock)
    : options_(options), clock_(clock), state_(std::move(state)), lineage_(std::move(lineage)) {
  shipped_.weights = std::move(shipped);
  served_ = shipped_;
}

VersionKeeper::Held VersionKeeper::held_of(const Bundle& bundle, LearnedPointer weights) {
  Held held;
  held.version = bundle.version;
  held.parent = bundle.parent;
  held.weights = std::move(weights);
  held.kind = bundle.kind;
  held.verdict = bundle.verdict;
  held.trained_requests = bundle.trained_requests;
  held.trained_tokens = bundle.trained_tokens;
  held.loss = bundle.loss;
  return held;
}

// A version of the state folder, ready to serve; nullopt: it is not there or not usable.
std::optional<VersionKeeper::Held> VersionKeeper::load(SpeculatorVersion version) {
  if (given_ && given_->version == version) return given_;
  if (!state_ || version.value == 0) return std::nullopt;
  const auto bytes = state_->load_bundle(version);
  if (!bytes) return std::nullopt;
  auto bundle = hooks_.parse(*bytes);
  std::string problem;
  if (!bundle) {
    problem = bundle.error().message;
  } else if (bundle->version != version) {
    problem = fmt::format("version: found {}", bundle->version.value);
  } else if (auto weights = hooks_.prepare(*bundle); !weights) {
    problem = weights.error().message;
    // Of a server that tapped other layers, as with another --spec-head: it may serve there again.
    if (problem.starts_with("taps: ")) {
      spdlog::info("speculator version {} does not serve here: {}", version.value, problem);
      return std::nullopt;
    }
  } else {
    return held_of(*bundle, std::move(*weights));
  }
  state_->set_aside(version, problem);
  return std::nullopt;
}

// The newest proven version before `version` that can be had, else version 0.
VersionKeeper::Held VersionKeeper::predecessor(SpeculatorVersion version) {
  const auto proven = lineage_.state().proven;  // a copy: the log below changes it
  for (auto it = proven.rbegin(); it != proven.rend(); ++it) {
    if (*it >= version) continue;
    if (auto held = load(*it)) return std::move(*held);
  }
  return shipped_;
}

// The operator's own: a new version, unless the lineage knows it.
void VersionKeeper::take_given() {
  if (!options_.given) return;
  const GivenSpeculator& given = *options_.given;
  const LineageState& state = lineage_.state();
  const bool known = state.given_digest == given.digest && state.given.value > 0 &&
                     !state.lost.contains(state.given.value);
  Held held;
  held.version = known ? state.given : SpeculatorVersion{state.highest.value + 1};
  held.kind = given.kind;
  held.verdict = given.digest;
  held.weights = given.make(held.version);
  if (known && state.banned.contains(held.version.value)) {
    spdlog::warn("speculator version {} ({}) was rolled back before: it is not served",
                 held.version.value, given.source);
    return;
  }
  given_ = held;
  if (known) return;
  served_ = std::move(held);
  log("given", served_, given.source);
}

void VersionKeeper::restore(VersionKeeperHooks hooks) {
  const std::lock_guard lock(mutex_);
  hooks_ = std::move(hooks);
  take_given();
  const LineageState before = lineage_.state();
  served_since_ = clock_.monotonic();
  if (before.served.value > 0) {
    if (auto held = load(before.served)) {
      served_ = std::move(*held);
    } else {
      Held lost;
      lost.version = before.served;
      served_ = predecessor(before.served);
      log("damaged", lost,
          before.served == before.given ? "it was given by --spec-head, which now names another"
                                        : "its bundle could not be read back");
    }
    spdlog::info("speculator version {} restored", served_.version.value);
  }
  if (served_.version.value > 0) previous_ = predecessor(served_.version);
  publish();
  // What was on trial starts over; what waited for its turn waits, or begins.
  for (const auto& version : {before.canary, before.waiting}) {
    if (!version) continue;
    if (auto held = load(*version)) {
      if (waiting_) log("superseded", *waiting_, fmt::format("by version {}", version->value));
      waiting_ = std::move(*held);
      if (!before.frozen) next();
    } else {
      Held lost;
      lost.version = *version;
      log("damaged", lost, "its bundle could not be read back");
    }
  }
}

void VersionKeeper::log(std::string event, const Held& held, std::string reason,
                        const PairedSums* judged, double alpha) {
  LineageEvent e;
  e.unix_ms = clock_.unix_ms();
  e.event = std::move(event);
  e.version = held.version;
  e.parent = held.parent;
  e.served = served_.version;
  e.frozen = lineage_.state().frozen;
  if (e.event == "frozen") e.frozen = true;
  if (e.event == "unfrozen") e.frozen = false;
  if (held.version.value > 0 && held.weights) {
    e.kind = held.kind;
    e.trained_requests = held.trained_requests;
    e.trained_tokens = held.trained_tokens;
    e.loss = held.loss;
    e.verdict = held.verdict;
  }
  e.reason = std::move(reason);
  if (judged && judged->requests > 0) {
    e.judged_requests = judged->requests;
    e.gain = judged->gain();
    e.low = lower_bound(*judged, alpha / 2);
    e.high = upper_bound(*judged, alpha / 2);
  }
  spdlog::info("speculator version {}: {}{}{}", e.version.value, e.event,
               e.reason.empty() ? "" : ": ", e.reason);
  if (auto s = lineage_.append(std::move(e)); !s)
    spdlog::warn("not kept across a restart: {}", s.error().message);
}

void VersionKeeper::publish() {
  if (hooks_.publish)
    hooks_.publish({served_.weights, trial_ ? trial_->held.weights : nullptr,
                    trial_ ? options_.canary_fraction : 0.0});
}

Status VersionKeeper::offer(const Bundle& bundle, std::span<const std::byte> bytes) {
  {
    const std::lock_guard lock(mutex_);
    const SpeculatorVersion v = bundle.version;
    if (v.value == 0) return refusal("version", "found 0, wanted above 0");
    if (v == served_.version || (trial_ && trial_->held.version == v) ||
        (waiting_ && waiting_->version == v))
      return Ok{};
    if (lineage_.state().banned.contains(v.value)) {
      refuse(v, "version: it was rolled back or refused before");
      return refusal(
          "version",
          fmt::format("{} was rolled back or refused before, it is never taken again", v.value));
    }
    // One that was lost on this disk may come again, but never in the place of a newer one.
    SpeculatorVersion newest = served_.version;
    if (trial_) newest = std::max(newest, trial_->held.version);
    if (waiting_) newest = std::max(newest, waiting_->version);
    const SpeculatorVersion highest = lineage_.state().highest;
    if (v <= highest && (v < newest || !lineage_.state().lost.contains(v.value))) {
      return refusal("version", fmt::format("found {}, wanted above {}", v.value, highest.value));
    }
    if (lineage_.state().frozen) {
      frozen_out_ = std::max(frozen_out_, v);
      refuse(v, "frozen: an operator has frozen the speculator");
      return refusal("frozen",
                     fmt::format("version {}: an operator has frozen the speculator", v.value));
    }
  }
  auto weights = hooks_.prepare(bundle);  // outside the lock: this is what takes long
  const std::lock_guard lock(mutex_);
  if (!weights) {
    Held bad = held_of(bundle, nullptr);
    if (refusals_logged_++ < kMaxRefusalsLogged) log("refused", bad, weights.error().message);
    refuse(bundle.version, weights.error().message);
    return weights.error();
  }
  Held held = held_of(bundle, std::move(*weights));
  if (state_) {
    // On trial all the same if the disk refuses: only a restart would miss it.
    if (auto s = state_->store_bundle(held.version, bytes); !s)
      spdlog::warn("speculator version {} is not kept: {}", held.version.value, s.error().message);
  }
  log("received", held, "");
  if (waiting_) log("superseded", *waiting_, fmt::format("by version {}", held.version.value));
  waiting_ = std::move(held);
  news_ = true;
  if (!trial_ && !lineage_.state().frozen) next();
  return Ok{};
}

void VersionKeeper::refuse(SpeculatorVersion version, const std::string& reason) {
  ++refused_count_;
  refused_ = std::max(refused_, version);
  refused_reason_ = reason;
  news_ = true;
}

// The waiting version, if there is one, goes on trial.
void VersionKeeper::next() {
  if (!waiting_ || trial_) return;
  trial_.emplace();
  trial_->held = std::move(*waiting_);
  trial_->since = clock_.monotonic();
  waiting_.reset();
  queue_.clear();  // requests of before: their wait is over
  queued_bytes_ = 0;
  if (options_.canary_fraction <= 0) return promote("without a canary");
  log("canary", trial_->held,
      fmt::format("on {:.0f} % of requests, against version {}", 100 * options_.canary_fraction,
                  served_.version.value));
  publish();
  news_ = true;
}

void VersionKeeper::observe(std::unique_ptr<RequestTrace> trace) {
  if (!trace || trace->gap || trace->rounds.empty()) return;
  const std::lock_guard lock(mutex_);
  if (trial_) {
    compare_live(*trace);
    if (!trial_) return;  // that was enough
  } else if (!previous_ || !sampled(trace->request, options_.watch_sample)) {
    return;
  }
  const std::size_t bytes = approximate_bytes(*trace);
  if (!hooks_.replay || queue_.size() >= options_.queue_requests ||
      (!queue_.empty() && queued_bytes_ + bytes > options_.queue_bytes)) {
    ++dropped_;
    return;
  }
  queued_bytes_ += bytes;
  queue_.push_back({std::move(trace), clock_.monotonic(), bytes});
}

// The k-th request of one arm against the k-th of the other: independent pairs, one and the same
// traffic, so the paired test holds for them as well.
void VersionKeeper::compare_live(const RequestTrace& trace) {
  std::int64_t rounds = 0, tokens = 0;
  bool canary = false, served = false;
  for (const RoundTrace& round : trace.rounds) {
    if (round.control) continue;
    ++rounds;
    tokens += round.accepted + 1;
    canary |= round.version == trial_->held.version;
    served |= round.version == served_.version;
  }
  // A request that a swap fell into belongs to no arm.
  if (rounds == 0 || canary == served) return;
  const double cost = static_cast<double>(rounds) / static_cast<double>(tokens);
  auto& mine = canary ? trial_->unpaired_canary : trial_->unpaired_served;
  if (mine.size() < kMaxUnpaired) mine.push_back(cost);
  while (!trial_->unpaired_canary.empty() && !trial_->unpaired_served.empty()) {
    trial_->live.add(trial_->unpaired_canary.front(), trial_->unpaired_served.front());
    trial_->unpaired_canary.pop_front();
    trial_->unpaired_served.pop_front();
  }
  decide();
}

bool VersionKeeper::judge() {
  std::unique_ptr<RequestTrace> trace;
  LearnedPointer candidate, reference;
  SpeculatorVersion candidate_version, reference_version;
  {
    const std::lock_guard lock(mutex_);
    if (queue_.empty()) return false;
    trace = std::move(queue_.front().trace);
    queued_bytes_ -= queue_.front().bytes;
    queue_.pop_front();
    const Held& a = trial_ ? trial_->held : served_;
    if (!trial_ && !previous_) return true;
    const Held& b = trial_ ? served_ : *previous_;
    candidate = a.weights;
    reference = b.weights;
    candidate_version = a.version;
    reference_version = b.version;
  }
  const auto costs = hooks_.replay(*trace, candidate, reference);
  const std::lock_guard lock(mutex_);
  ++judged_;
  if (!costs) return true;
  if (trial_) {
    if (trial_->held.version != candidate_version || served_.version != reference_version)
      return true;  // the world moved on while it was replayed
    trial_->replay.add(costs->candidate, costs->served);
  } else {
    if (served_.version != candidate_version || !previous_ ||
        previous_->version != reference_version)
      return true;
    watch_.add(costs->candidate, costs->served);
  }
  decide();
  return true;
}

void VersionKeeper::decide() {
  if (!trial_) {
    if (watch_.requests >= kLeastRequests && upper_bound(watch_, options_.watch_alpha) < 0) {
      const PairedSums judged = watch_;
      roll_back_served(fmt::format("slower than version {} on {} requests: {:+.1f} %",
                                   previous_->version.value, judged.requests, 100 * judged.gain()),
                       &judged);
    } else if (watch_.requests >= options_.watch_epoch) {
      watch_ = {};
    }
    return;
  }
  const PairedSums& replay = trial_->replay;
  const PairedSums& live = trial_->live;
  if (live.requests >= kLeastRequests && upper_bound(live, options_.alpha) < -options_.live_margin)
    return end_trial(fmt::format("its requests took more rounds than the others': {:+.1f} % on {}",
                                 100 * live.gain(), live.requests));
  if (replay.requests < kLeastRequests) return;
  const auto said = [&] {
    return fmt::format("{:+.1f} % predicted speed on {} requests replayed", 100 * replay.gain(),
                       replay.requests);
  };
  if (upper_bound(replay, options_.alpha) < 0) return end_trial("slower: " + said());
  if (lower_bound(replay, options_.alpha) > -options_.margin) {
    // Replay and reality agree, as far as a few requests of either arm can say; if not, reality is
    // asked on, until the bound above says what it is.
    const double error = live.deviation() / std::sqrt(std::max(1.0, double(live.requests)));
    if (live.requests >= kLeastLivePairs && live.gain() >= -kLiveDeviations * error)
      return promote(said());
  }
  if (replay.requests >= options_.most_requests) {
    // Any-time bounds pay for the looks that were taken; at the last one the plain bound is
    // allowed.
    const double error = replay.deviation() / std::sqrt(static_cast<double>(replay.requests));
    if (replay.gain() - 1.645 * error > -options_.margin && live.requests >= kLeastLivePairs)
      return promote(said());
    end_trial("not shown to be as good: " + said());
  }
}

void VersionKeeper::promote(const std::string& reason) {
  const PairedSums judged = trial_->replay;
  previous_ = std::move(served_);
  served_ = std::move(trial_->held);
  trial_.reset();
  served_since_ = clock_.monotonic();
  watch_ = {};
  ++promoted_;
  news_ = true;
  log("promoted", served_, reason, &judged, options_.alpha);
  publish();
  clean_up();
  next();
}

void VersionKeeper::end_trial(const std::string& reason) {
  const PairedSums judged = trial_->replay;
  const Held held = std::move(trial_->held);
  trial_.reset();
  ++rolled_back_;
  log("rolled_back", held, reason, &judged, options_.alpha);
  refused_ = std::max(refused_, held.version);
  refused_reason_ = "rolled back: " + reason;
  news_ = true;
  publish();
  clean_up();
  next();
}

void VersionKeeper::roll_back_served(const std::string& reason, const PairedSums* judged) {
  const Held bad = std::move(served_);
  served_ = previous_ ? std::move(*previous_) : shipped_;
  previous_.reset();
  served_since_ = clock_.monotonic();
  watch_ = {};
  queue_.clear();
  queued_bytes_ = 0;
  ++rolled_back_;
  log("rolled_back", bad, reason, judged, options_.watch_alpha);
  if (served_.version.value > 0) previous_ = predecessor(served_.version);
  refused_ = std::max(refused_, bad.version);
  refused_reason_ = "rolled back: " + reason;
  news_ = true;
  publish();
  clean_up();
}

void VersionKeeper::clean_up() {
  if (!state_) return;
  std::vector<SpeculatorVersion> kept{served_.version};
  if (previous_) kept.push_back(previous_->version);
  if (trial_) kept.push_back(trial_->held.version);
  if (waiting_) kept.push_back(waiting_->version);
  if (lineage_.state().waiting) kept.push_back(*lineage_.state().waiting);
  const auto& proven = lineage_.state().proven;
  const std::size_t first = proven.size() > kKeptVersions ? proven.size() - kKeptVersions : 0;
  kept.insert(kept.end(), proven.begin() + static_cast<std::ptrdiff_t>(first), proven.end());
  state_->keep_only(kept);
}

std::optional<std::chrono::nanoseconds> VersionKeeper::waiting() const {
  const std::lock_guard lock(mutex_);
  if (queue_.empty()) return std::nullopt;
  return clock_.monotonic() - queue_.front().since;
}

Status VersionKeeper::rollback(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (!trial_ && !waiting_ && served_.version.value == 0)
    return Error{ErrorCode::kNotFound,
                 "nothing to roll back: the speculator serves as it was shipped"};
  if (waiting_) {
    // It was never shown to be bad, but the operator wants nothing newer for now.
    const Held held = std::move(*waiting_);
    waiting_.reset();
    log("rolled_back", held, reason);
    refused_ = std::max(refused_, held.version);
    refused_reason_ = "rolled back: " + reason;
  }
  if (trial_) end_trial(reason);
  if (served_.version.value > 0) roll_back_served(reason, nullptr);
  return Ok{};
}

void VersionKeeper::freeze() {
  const std::lock_guard lock(mutex_);
  if (lineage_.state().frozen) return;
  if (trial_) {
    // Starts over when unfrozen, unless a newer one waits already.
    if (waiting_)
      log("superseded", trial_->held, fmt::format("by version {}", waiting_->version.value));
    else
      waiting_ = std::move(trial_->held);
    trial_.reset();
    publish();
  }
  log("frozen", served_, "by an operator");
}

void VersionKeeper::unfreeze() {
  const std::lock_guard lock(mutex_);
  if (!lineage_.state().frozen) return;
  log("unfrozen", served_, "by an operator");
  // Let the trainer offer again what was refused for the frost alone.
  if (refused_ == frozen_out_ && frozen_out_.value > 0) {
    refused_ = {};
    refused_reason_.clear();
  }
  frozen_out_ = {};
  news_ = true;
  next();
}

SpeculatorVersion VersionKeeper::served() const {
  const std::lock_guard lock(mutex_);
  return served_.version;
}

SpeculatorVersion VersionKeeper::highest() const {
  const std::lock_guard lock(mutex_);
  return lineage_.state().highest;
}
SpeculatorVersion VersionKeeper::canary() const {
  const std::lock_guard lock(mutex_);
  SpeculatorVersion newest;
  if (trial_) newest = trial_->held.version;
  if (waiting_) newest = std::max(newest, waiting_->version);
  return newest;
}

SpeculatorVersion VersionKeeper::refused() const {
  const std::lock_guard lock(mutex_);
  return refused_;
}

std::string VersionKeeper::refused_reason() const {
  const std::lock_guard lock(mutex_);
  return refused_reason_;
}

bool VersionKeeper::take_news() {
  const std::lock_guard lock(mutex_);
  return std::exchange(news_, false);
}

SpeculatorState VersionKeeper::state() const {
  const std::lock_guard lock(mutex_);
  const auto now = clock_.monotonic();
  const auto seconds = [&](std::chrono::nanoseconds since) {
    return std::chrono::duration<double>(now - since).count();
  };
  SpeculatorState s;
  s.served = served_.version;
  s.parent = served_.parent;
  s.kind = served_.kind;
  const auto has_head = [](const Held& held) { return held.weights && held.weights->head; };
  s.has_head = has_head(served_) || (trial_ && has_head(trial_->held));
  s.age_s = seconds(served_since_);
  s.verdict = served_.verdict;
  s.frozen = lineage_.state().frozen;
  if (trial_)
    s.canary = {trial_->held.version, seconds(trial_->since), options_.canary_fraction,
                figures(trial_->replay), figures(trial_->live)};
  if (waiting_) s.waiting = waiting_->version;
  if (previous_) s.previous = previous_->version;
  s.watch = figures(watch_);
  for (const SpeculatorVersion v : lineage_.state().proven) s.proven.push_back(v.value);
  s.banned.assign(lineage_.state().banned.begin(), lineage_.state().banned.end());
  s.promoted = promoted_;
  s.rolled_back = rolled_back_;
  s.refused = refused_count_;
  s.judged = judged_;
  s.judge_dropped = dropped_;
  const auto& events = lineage_.events();
  for (std::size_t i = events.size() > kShownEvents ? events.size() - kShownEvents : 0;
       i < events.size(); ++i)
    s.lineage.push_back(to_json(events[i]));
  return s;
}

}  // namespace foretoken
