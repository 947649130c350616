#include "trainer/session/training_session.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>

#include "foretoken/protocol/atomic_file.h"
#include "foretoken/protocol/state_folder.h"

namespace foretoken::trainer {
namespace {

// A kill costs at most the training since the last checkpoint, which is then repeated from the
// buffer. A head's state is tens of megabytes to write and to sync: a checkpoint comes so late that
// writing takes at most a fiftieth of the time.
constexpr std::chrono::seconds kCheckpointInterval{5};
constexpr int kCheckpointShare = 50;

std::filesystem::path checkpoint_path(const std::filesystem::path& folder) {
  return folder / "checkpoint";
}

std::filesystem::path candidate_path(const std::filesystem::path& folder, std::uint64_t number) {
  return folder / fmt::format("candidate-{}.bundle", number);
}

// Of kind "fusion": what is published of a candidate whose head did not pass.
Bundle fusion_alone(const Bundle& bundle) {
  Bundle out = bundle;
  out.kind = "fusion";
  std::erase_if(out.tensors,
                [](const auto& tensor) { return !tensor.first.starts_with("fusion."); });
  return out;
}

}  // namespace

Result<std::unique_ptr<TrainingSession>> TrainingSession::open(
    const std::filesystem::path& state_root, const ModelFingerprint& fingerprint,
    const SessionOptions& options, const Clock& clock) {
  const auto folder = model_state_folder(state_root, fingerprint) / "trainer";
  remove_leftovers(folder);
  auto buffer =
      ReplayBuffer::open(folder / "buffer", options.buffer_bytes, options.buffer_max_age_s);
  if (!buffer) return buffer.error();
  auto versions = VersionStore::open(folder / "versions", options.signing_key);
  if (!versions) return versions.error();
  std::unique_ptr<TrainingSession> session(new TrainingSession(
      folder, fingerprint, options, clock, std::move(buffer).value(), std::move(versions).value()));
  session->resume();
  return session;
}

TrainingSession::TrainingSession(const std::filesystem::path& folder,
                                 const ModelFingerprint& fingerprint, const SessionOptions& options,
                                 const Clock& clock, ReplayBuffer buffer, VersionStore versions)
    : folder_(folder),
      fingerprint_(fingerprint),
      options_(options),
      clock_(clock),
      buffer_(std::move(buffer)),
      versions_(std::move(versions)),
      gate_(options.gate, initial_weights()),
      learner_(options.make_learner(buffer_)),
      next_checkpoint_(clock.monotonic() + kCheckpointInterval) {}

void TrainingSession::resume() {
  auto checkpoint = read_checkpoint(checkpoint_path(folder_));
  if (checkpoint) {
    if (auto s = learner_->restore(checkpoint->learner); !s) checkpoint = s.error();
  }
  if (checkpoint) {
    versions_.reserve_up_to(checkpoint->highest_version);
    published_ = checkpoint->published;
    served_ = checkpoint->served;
    next_to_train_ = checkpoint->next_sequence;
    verdicts_ = checkpoint->verdicts;
    gate_.set_served(weights_of(served_));
    resume_candidates(std::move(checkpoint->gate));
    if (auto bundle = published_.value ? versions_.load(published_) : std::nullopt) {
      sender_.publish(published_, std::move(*bundle));
    }
  } else if (checkpoint.error().code != ErrorCode::kNotFound) {
    spdlog::warn("{}; training starts over from the buffer", checkpoint.error().message);
    std::error_code ignored;
    std::filesystem::rename(checkpoint_path(folder_),
                            checkpoint_path(folder_).string() + ".damaged", ignored);
  }
  const LearnerFacts facts = learner_->facts();
  spdlog::info(
      "model {}: step {}, version {}, learned from {} requests, {} in the buffer, {} of them not "
      "yet learned from",
      to_hex(fingerprint_).substr(0, 16), facts.step, published_.value, facts.trained_requests,
      buffer_.requests(),
      buffer_.next_sequence() - std::min(buffer_.next_sequence(), next_to_train_));
}

// A candidate's file is written before the checkpoint that speaks of it, and deleted after the one
// that no longer does. A kill in between leaves a file that no trial is of.
void TrainingSession::resume_candidates(GateState state) {
  std::vector<std::shared_ptr<const LearnedWeights>> candidates;
  for (const Trial& trial : state.trials) {
    auto& weights = candidates.emplace_back();
    auto bytes = read_file(candidate_path(folder_, trial.candidate), kMaxBundleBytes);
    if (bytes && content_hash(*bytes) == trial.facts.hash) {
      if (auto bundle = parse_bundle_of_anyone(*bytes)) {
        if (auto made = learned_from_bundle(*bundle, options_.rows))
          weights = std::move(made).value();
        candidates_[trial.candidate] = std::move(bundle).value();
      }
    }
    if (!weights) spdlog::warn("candidate {} of the checkpoint is lost", trial.candidate);
  }
  gate_.restore(std::move(state), candidates);
  begin_warm_up();
  forget_candidates();
}

void TrainingSession::forget_candidates() {
  const auto on_trial = [&](std::uint64_t number) {
    return std::ranges::any_of(gate_.state().trials,
                               [&](const Trial& trial) { return trial.candidate == number; });
  };
  std::erase_if(candidates_, [&](const auto& candidate) { return !on_trial(candidate.first); });
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error)) {
    const std::string name = entry.path().filename().string();
    std::uint64_t number = 0;
    if (std::sscanf(name.c_str(), "candidate-%" SCNu64 ".bundle", &number) == 1 &&
        !on_trial(number))
      std::filesystem::remove(entry.path(), error);
  }
}

std::shared_ptr<const LearnedWeights> TrainingSession::weights_of(SpeculatorVersion version) const {
  if (version.value == 0) return initial_weights();
  const auto bytes = versions_.load(version);
  auto bundle = bytes ? parse_bundle_of_anyone(*bytes)
                      : Result<Bundle>(Error{ErrorCode::kNotFound, "its file is gone"});
  auto weights = bundle ? learned_from_bundle(*bundle, options_.rows) : bundle.error();
  if (weights) return std::move(weights).value();
  spdlog::warn("version {}: {}; candidates are judged against what ships", version.value,
               weights.error().message);
  return initial_weights();
}

Status TrainingSession::ingest(const Message& message, const RequestTrace& trace) {
  if (trace.model_fingerprint != fingerprint_) {
    return Error{ErrorCode::kInvalidInput, "fingerprint: trace: of another model"};
  }
  if (buffer_.contains(trace.server_run, trace.request.value)) {
    return Error{ErrorCode::kInvalidInput, "duplicate: trace: this request is in the buffer"};
  }
  auto sequence = buffer_.append(message, trace.server_run, trace.request.value);
  if (!sequence) return Error{sequence.error().code, "disk: " + sequence.error().message};
  return Ok{};
}

bool TrainingSession::work() {
  bool decided = false;
  const std::uint64_t waiting =
      buffer_.next_sequence() - std::min(buffer_.next_sequence(), next_to_train_);
  if (!learner_->work(waiting)) {
    const LearnerFacts facts = learner_->facts();
    if (gate_.wants(facts.step, facts.trained_requests)) propose();
    if (gate_.is_cold()) {
      warm_up();
      return true;
    }
    if (waiting == 0) return false;
    const auto next = buffer_.first_from(next_to_train_);
    if (!next) {  // what is left was deleted as too old, or is damaged
      next_to_train_ = buffer_.next_sequence();
      return false;
    }
    // Scored before it is learned from.
    auto decisions = gate_.score(next->trace, clock_.unix_ms());
    learner_->observe(next->sequence, next->trace);
    next_to_train_ = next->sequence + 1;
    for (PrequentialGate::Decision& decision : decisions) conclude(decision);
    decided = !decisions.empty();
  }
  if (decided || clock_.monotonic() >= next_checkpoint_) {
    if (auto s = checkpoint(); !s) spdlog::warn("{}", s.error().message);
  }
  if (decided) forget_candidates();
  return true;
}

// A head that no server has run yet is priced by what it reads beside what the target reads.
RoundCosts TrainingSession::costs_with(const LearnedWeights& candidate) const {
  RoundCosts costs = server_costs_;
  if (head_measured_ || !candidate.head || !options_.rows || options_.rows->step_bytes() == 0)
    return costs;
  const double share = double(candidate.head->step_bytes()) / double(options_.rows->step_bytes());
  costs.head_step = static_cast<float>(share * costs.round(1));
  costs.head_start = costs.head_step / 4;
  return costs;
}

void TrainingSession::propose() {
  Bundle bundle = learner_->snapshot();
  bundle.model_fingerprint = fingerprint_;
  bundle.created_unix_ms = clock_.unix_ms();
  auto weights = learned_from_bundle(bundle, options_.rows);
  if (!weights) {
    spdlog::error("no candidate: {}", weights.error().message);
    return;
  }
  const auto bytes = serialize(bundle, options_.signing_key);
  const std::uint64_t number = gate_.state().candidates + 1;
  if (auto s = write_file_atomically(candidate_path(folder_, number), bytes); !s) {
    spdlog::warn("no candidate: {}", s.error().message);
    return;
  }
  const RoundCosts costs = costs_with(**weights);
  auto replaced =
      gate_.propose(std::move(weights).value(),
                    {learner_->facts().step, bundle.trained_tokens, bundle.trained_requests,
                     bundle.loss, content_hash(bytes), bundle.kind != "fusion"},
                    costs, clock_.unix_ms());
  spdlog::info("candidate {} ({}, step {}, {} requests, {} tokens, loss {:.4f}) is on trial",
               number, bundle.kind, gate_.state().newest.step, bundle.trained_requests,
               bundle.trained_tokens, bundle.loss);
  begin_warm_up();
  candidates_[number] = std::move(bundle);
  if (replaced) conclude(*replaced);
  if (auto s = checkpoint(); !s) spdlog::warn("{}", s.error().message);
  if (replaced) forget_candidates();
}

void TrainingSession::begin_warm_up() {
  next_to_warm_ = next_to_train_ - std::min(next_to_train_, gate_.warm_requests());
}

void TrainingSession::warm_up() {
  const auto record =
      next_to_warm_ < next_to_train_ ? buffer_.first_from(next_to_warm_) : std::nullopt;
  if (!record || record->sequence >= next_to_train_) return gate_.begin();
  gate_.warm(record->trace);
  next_to_warm_ = record->sequence + 1;
}

void TrainingSession::conclude(PrequentialGate::Decision& decision) {
  if (decision.verdict == Verdict::kPromoted) {
    publish(decision);
  } else {
    spdlog::info("candidate {} (step {}): {}", decision.record.candidate, decision.record.step,
                 decision.record.text);
  }
  const bool gained = decision.verdict == Verdict::kPromoted;
  if (gained || decision.too_little) learner_->judged(decision.trained_tokens, gained);
  verdicts_.push_back(std::move(decision.record));
  if (verdicts_.size() > kMaxVerdicts) verdicts_.pop_front();
}

void TrainingSession::publish(PrequentialGate::Decision& decision) {
  const Bundle& candidate = candidates_.at(decision.record.candidate);
  Bundle bundle = decision.tier == Tier::kHead ? candidate : fusion_alone(candidate);
  bundle.version = versions_.next();
  bundle.parent = served_;
  bundle.created_unix_ms = clock_.unix_ms();
  bundle.verdict = decision.record.text;
  const auto fail = [&](const Error& error) {
    spdlog::error("version {} is not published: {}", bundle.version.value, error.message);
    gate_.set_served(weights_of(served_));
  };
  auto bytes = versions_.add(bundle);
  if (!bytes) return fail(bytes.error());
  // The number is taken on disk (file, then checkpoint) before any server can see it.
  const SpeculatorVersion published = published_, served = served_;
  published_ = served_ = bundle.version;
  if (auto s = checkpoint(); !s) {
    published_ = published;
    served_ = served;
    return fail(s.error());
  }
  decision.record.version = bundle.version;
  sender_.publish(bundle.version, std::move(bytes).value());
  spdlog::info("published version {} ({}, step {}, {} requests, {} tokens, loss {:.4f}): {}",
               bundle.version.value, bundle.kind, decision.record.step, bundle.trained_requests,
               bundle.trained_tokens, bundle.loss, bundle.verdict);
}

void TrainingSession::heard(const ServerHello& hello) {
  if (hello.model_fingerprint != fingerprint_) return;
  if (const SpeculatorVersion taken = std::max(hello.served, hello.highest);
      taken > versions_.highest()) {
    spdlog::warn(
        "the server has had version {}, the newest here is {}: numbering goes on from the server's",
        taken.value, versions_.highest().value);
    versions_.reserve_up_to(taken);
  }
  sender_.heard(hello);
  server_costs_ = RoundCosts::measured(hello.round_ms, hello.head_start_ms, hello.head_step_ms);
  head_measured_ = hello.head_step_ms > 0;
  // Refused, or taken back by the canary: what candidates must beat is what serves.
  if (hello.refused == published_ && published_.value != 0 && served_ == published_ &&
      hello.served < published_) {
    spdlog::warn("the server gave version {} up ({}): candidates are judged against version {}",
                 published_.value, hello.refused_reason, hello.served.value);
    served_ = hello.served;
    gate_.set_served(weights_of(served_));
  }
}

Status TrainingSession::checkpoint() {
  const auto begun = clock_.monotonic();
  auto status = write_checkpoint(checkpoint_path(folder_),
                                 {next_to_train_, learner_->state(), gate_.state(),
                                  versions_.highest(), published_, served_, verdicts_});
  const auto ended = clock_.monotonic();
  if (status) {
    const LearnerFacts facts = learner_->facts();
    spdlog::debug("checkpoint: step {}, version {}, learned from {} requests", facts.step,
                  published_.value, facts.trained_requests);
  }
  next_checkpoint_ = ended + std::max<std::chrono::nanoseconds>(kCheckpointInterval,
                                                                kCheckpointShare * (ended - begun));
  return status;
}

TrainerStatus TrainingSession::status() const {
  TrainerStatus status;
  status.model_fingerprint = fingerprint_;
  status.current = sender_.current();
  const LearnerFacts facts = learner_->facts();
  status.step = facts.step;
  status.loss = facts.loss;
  status.trained_tokens = facts.trained_tokens;
  status.trained_requests = facts.trained_requests;
  status.buffer_requests = buffer_.requests();
  status.buffer_bytes = std::int64_t(buffer_.bytes());
  if (!verdicts_.empty()) status.verdict = verdicts_.back().text;
  status.verdicts.assign(verdicts_.begin(), verdicts_.end());
  return status;
}

}  // namespace foretoken::trainer
