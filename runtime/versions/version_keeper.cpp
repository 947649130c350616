#include "runtime/versions/version_keeper.h"

#include <spdlog/spdlog.h>

#include "foretoken/kernels/splitmix64.h"
#include "runtime/speculate/registry.h"

namespace foretoken {
namespace {

constexpr std::size_t kKeptVersions = 16;  // proven bundles on disk: what rollbacks can reach
constexpr std::size_t kShownEvents = 50;
constexpr double kShownAlpha = 0.025;  // of each side of an interval that is shown: 95 %

GainFigures figures(const PairedSums& sums) {
  return {sums.requests, sums.gain(), lower_bound(sums, kShownAlpha),
          upper_bound(sums, kShownAlpha)};
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
    : options_(options),
      clock_(clock),
      state_(std::move(state)),
      lineage_(std::move(lineage)),
      life_({.weights = std::move(shipped)}, lineage_.state()),
      queue_(options.queue_requests, options.queue_bytes) {}

// --- files and lineage

// A version of the state folder, ready to serve; nullopt: it is not there or not usable.
std::optional<HeldVersion> VersionKeeper::load(SpeculatorVersion version) {
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
  state_->bundles().set_aside(version, problem);
  return std::nullopt;
}

// What would serve in the served version's place: the newest proven one before it that can be had,
// else version 0; nullopt: version 0 serves.
std::optional<HeldVersion> VersionKeeper::predecessor() {
  const SpeculatorVersion version = life_.served().version;
  if (version.value == 0) return std::nullopt;
  const auto& proven = life_.known().proven;
  for (auto it = proven.rbegin(); it != proven.rend(); ++it) {
    if (*it >= version) continue;
    if (auto held = load(*it)) return held;
  }
  return life_.shipped();
}

void VersionKeeper::record(LineageEvents events) {
  for (LineageEvent& e : events) {
    e.unix_ms = clock_.unix_ms();
    spdlog::info("speculator version {}: {}{}{}", e.version.value, e.event,
                 e.reason.empty() ? "" : ": ", e.reason);
    if (auto s = lineage_.append(std::move(e)); !s)
      spdlog::warn("not kept across a restart: {}", s.error().message);
  }
}

void VersionKeeper::publish() {
  if (!hooks_.publish) return;
  const auto& canary = life_.canary();
  hooks_.publish({life_.served().weights, canary ? canary->weights : nullptr,
                  canary ? options_.canary_fraction : 0.0});
}

void VersionKeeper::clean_up() {
  if (!state_) return;
  std::vector<SpeculatorVersion> kept{life_.served().version};
  for (const auto* held : {&life_.previous(), &life_.canary(), &life_.waiting()})
    if (*held) kept.push_back((*held)->version);
  const LineageState& known = life_.known();
  if (known.waiting) kept.push_back(*known.waiting);
  const auto& proven = known.proven;
  const std::size_t first = proven.size() > kKeptVersions ? proven.size() - kKeptVersions : 0;
  kept.insert(kept.end(), proven.begin() + std::ptrdiff_t(first), proven.end());
  state_->keep_only(kept);
}

// --- start-up

// The operator's own: a new version, unless the lineage knows it.
void VersionKeeper::take_given() {
  if (!options_.given) return;
  const GivenSpeculator& given = *options_.given;
  const LineageState& state = life_.known();
  const bool known = state.given_digest == given.digest && state.given.value > 0 &&
                     !state.lost.contains(state.given.value);
  HeldVersion held;
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
  if (!known) record(life_.give(std::move(held), given.source));
}

void VersionKeeper::restore(VersionKeeperHooks hooks) {
  const std::lock_guard lock(mutex_);
  hooks_ = std::move(hooks);
  take_given();
  const LineageState before = life_.known();
  served_since_ = clock_.monotonic();
  if (before.served.value > 0) {
    if (auto held = load(before.served)) {
      life_.serve(std::move(*held));
    } else {
      HeldVersion lost = life_.shipped();
      lost.version = before.served;
      life_.serve(std::move(lost));
      life_.serve(*predecessor());
      record(life_.lose(before.served, before.served == before.given
                                           ? "it was given by --spec-head, which now names another"
                                           : "its bundle could not be read back"));
    }
    spdlog::info("speculator version {} restored", life_.served().version.value);
  }
  life_.set_previous(predecessor());
  publish();
  // What was on trial starts over; what waited for its turn waits, or begins.
  for (const auto& version : {before.canary, before.waiting}) {
    if (!version) continue;
    if (auto held = load(*version)) {
      record(life_.wait(std::move(*held)));
      begin_next();
    } else {
      record(life_.lose(*version, "its bundle could not be read back"));
    }
  }
}

// --- versions that come, and what becomes of them

Status VersionKeeper::offer(const Bundle& bundle, std::span<const std::byte> bytes) {
  {
    const std::lock_guard lock(mutex_);
    VersionLife::Offer offer = life_.offered(bundle.version);
    if (!offer.wanted) return std::move(offer.answer);
  }
  auto weights = hooks_.prepare(bundle);  // outside the lock: this is what takes long
  const std::lock_guard lock(mutex_);
  if (!weights) {
    record(life_.refused(held_of(bundle, nullptr), weights.error().message));
    return weights.error();
  }
  if (state_) {
    // On trial all the same if the disk refuses: only a restart would miss it.
    if (auto s = state_->bundles().write(bundle.version, bytes); !s)
      spdlog::warn("speculator version {} is not kept: {}", bundle.version.value,
                   s.error().message);
  }
  record(life_.received(held_of(bundle, std::move(*weights))));
  begin_next();
  return Ok{};
}

// The waiting version, if there is one and its turn has come, goes on trial.
void VersionKeeper::begin_next() {
  const SpeculatorVersion served = life_.served().version;
  LineageEvents events = life_.begin(options_.canary_fraction);
  if (events.empty()) return;
  trial_ = {};
  canary_since_ = clock_.monotonic();
  queue_.clear();  // requests of before: their wait is over
  record(std::move(events));
  if (life_.served().version != served) return serves_anew();  // without a canary
  publish();
}

// Another version serves.
void VersionKeeper::serves_anew() {
  served_since_ = clock_.monotonic();
  watch_ = {};
  publish();
  clean_up();
}

void VersionKeeper::promote(const std::string& reason) {
  record(life_.promote(reason, trial_.replay(), options_.alpha));
  serves_anew();
  begin_next();
}

void VersionKeeper::end_trial(const std::string& reason) {
  record(life_.roll_back_canary(reason, trial_.replay(), options_.alpha));
  publish();
  clean_up();
  begin_next();
}

void VersionKeeper::roll_back_served(const std::string& reason, const PairedSums& judged) {
  record(life_.roll_back_served(reason, judged, options_.watch_alpha));
  life_.set_previous(predecessor());
  queue_.clear();
  serves_anew();
}

// --- evidence

void VersionKeeper::observe(std::unique_ptr<RequestTrace> trace) {
  if (!trace || trace->gap || trace->rounds.empty()) return;
  const std::lock_guard lock(mutex_);
  if (life_.canary()) {
    trial_.add_live(*trace, life_.canary()->version, life_.served().version);
    decide();
    if (!life_.canary()) return;  // that was enough
  } else if (!life_.previous() || !sampled(trace->request, options_.watch_sample)) {
    return;
  }
  if (!hooks_.replay || !queue_.push(std::move(trace), clock_.monotonic())) ++dropped_;
}

bool VersionKeeper::judge() {
  std::unique_ptr<RequestTrace> trace;
  HeldVersion candidate, reference;
  {
    const std::lock_guard lock(mutex_);
    if (!(trace = queue_.pop())) return false;
    if (!life_.canary() && !life_.previous()) return true;
    candidate = life_.canary() ? *life_.canary() : life_.served();
    reference = life_.canary() ? life_.served() : *life_.previous();
  }
  const auto costs = hooks_.replay(*trace, candidate.weights, reference.weights);
  const std::lock_guard lock(mutex_);
  ++judged_;
  if (!costs) return true;
  const auto is = [](const std::optional<HeldVersion>& held, const HeldVersion& was) {
    return held && held->version == was.version;
  };
  const SpeculatorVersion served = life_.served().version;
  if (is(life_.canary(), candidate) && served == reference.version)
    trial_.add_replayed(*costs);
  else if (!life_.canary() && served == candidate.version && is(life_.previous(), reference))
    watch_.add(*costs);
  else
    return true;  // the world moved on while it was replayed
  decide();
  return true;
}

void VersionKeeper::decide() {
  if (life_.canary()) {
    if (const auto verdict = trial_.verdict(options_))
      verdict->promoted ? promote(verdict->reason) : end_trial(verdict->reason);
  } else if (watch_.slower(options_)) {
    const PairedSums judged = watch_.sums();
    roll_back_served(
        fmt::format("slower than version {} on {} requests: {:+.1f} %",
                    life_.previous()->version.value, judged.requests, 100 * judged.gain()),
        judged);
  }
}

std::optional<std::chrono::nanoseconds> VersionKeeper::waiting() const {
  const std::lock_guard lock(mutex_);
  const auto oldest = queue_.oldest();
  return oldest ? std::optional(clock_.monotonic() - *oldest) : std::nullopt;
}

// --- operators

Status VersionKeeper::rollback(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (!life_.canary() && !life_.waiting() && life_.served().version.value == 0)
    return Error{ErrorCode::kNotFound,
                 "nothing to roll back: the speculator serves as it was shipped"};
  record(life_.drop_waiting(reason));
  if (life_.canary()) end_trial(reason);
  if (life_.served().version.value > 0) roll_back_served(reason, {});
  return Ok{};
}

void VersionKeeper::freeze() {
  const std::lock_guard lock(mutex_);
  const bool on_trial = life_.canary().has_value();
  record(life_.freeze());
  if (on_trial) publish();
}

void VersionKeeper::unfreeze() {
  const std::lock_guard lock(mutex_);
  record(life_.unfreeze());
  begin_next();
}

// --- what others may know

SpeculatorState VersionKeeper::state() const {
  const std::lock_guard lock(mutex_);
  const auto now = clock_.monotonic();
  const auto seconds = [&](std::chrono::nanoseconds since) {
    return std::chrono::duration<double>(now - since).count();
  };
  const HeldVersion& served = life_.served();
  const auto& canary = life_.canary();
  const LineageState& known = life_.known();
  SpeculatorState s;
  s.served = served.version;
  s.parent = served.parent;
  s.kind = served.kind;
  const auto has_head = [](const HeldVersion& held) { return held.weights && held.weights->head; };
  const bool head = has_head(served) || (canary && has_head(*canary));
  for (const SpeculatorRow& row : kSpeculators)
    if (row.learned && (row.make || head)) s.tiers.emplace_back(row.name);
  s.age_s = seconds(served_since_);
  s.verdict = served.verdict;
  s.frozen = known.frozen;
  if (canary)
    s.canary = {canary->version, seconds(canary_since_), options_.canary_fraction,
                figures(trial_.replay()), figures(trial_.live())};
  if (life_.waiting()) s.waiting = life_.waiting()->version;
  if (life_.previous()) s.previous = life_.previous()->version;
  s.watch = figures(watch_.sums());
  for (const SpeculatorVersion v : known.proven) s.proven.push_back(v.value);
  s.banned.assign(known.banned.begin(), known.banned.end());
  s.promoted = life_.promotions();
  s.rolled_back = life_.rollbacks();
  s.refused = life_.refusals();
  s.judged = judged_;
  s.judge_dropped = dropped_;
  const auto& events = lineage_.events();
  for (std::size_t i = events.size() > kShownEvents ? events.size() - kShownEvents : 0;
       i < events.size(); ++i)
    s.lineage.push_back(to_json(events[i]));
  return s;
}

}  // namespace foretoken
