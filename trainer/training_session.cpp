#include "trainer/training_session.h"

#include <spdlog/spdlog.h>

#include "foretoken/protocol/state_folder.h"
#include "runtime/evaluate/fusion_bundle.h"

namespace foretoken::trainer {
namespace {

// A kill costs at most this much training, which is then repeated from the buffer: milliseconds of
// work.
constexpr std::chrono::seconds kCheckpointInterval{5};

std::filesystem::path checkpoint_path(const std::filesystem::path& folder) {
  return folder / "checkpoint";
}

}  // namespace

Result<std::unique_ptr<TrainingSession>> TrainingSession::open(
    const std::filesystem::path& state_root, const ModelFingerprint& fingerprint,
    const SessionOptions& options, const Clock& clock) {
  const auto folder = model_state_folder(state_root, fingerprint) / "trainer";
  auto buffer = ReplayBuffer::open(folder / "buffer", options.buffer_bytes);
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
      gate_(options.publish_every_requests, FusionTable::initial()),
      learner_((options.make_learner ? options.make_learner
                                     : learner_factory(options.learner))(buffer_)),
      last_checkpoint_(clock.monotonic()) {}

void TrainingSession::resume() {
  auto checkpoint = read_checkpoint(checkpoint_path(folder_));
  if (checkpoint) {
    if (auto s = learner_->restore(checkpoint->learner); !s) checkpoint = s.error();
  }
  if (checkpoint) {
    gate_.restore(checkpoint->gate);
    versions_.reserve_up_to(checkpoint->highest_version);
    served_version_ = checkpoint->served_version;
    next_to_train_ = checkpoint->next_sequence;
    if (gate_.has_candidate()) proposed_step_ = checkpoint->gate.candidate->step;
    verdict_ = checkpoint->verdict;
    if (auto bundle = served_version_.value ? versions_.load(served_version_) : std::nullopt) {
      sender_.publish(served_version_, std::move(*bundle));
    }
  } else if (checkpoint.error().code != ErrorCode::kNotFound) {
    spdlog::warn("{}; training starts over from the buffer", checkpoint.error().message);
    std::error_code ignored;
    std::filesystem::rename(checkpoint_path(folder_),
                            checkpoint_path(folder_).string() + ".damaged", ignored);
  }
  spdlog::info("model {}: step {}, version {}, {} requests in the buffer, {} not yet learned from",
               to_hex(fingerprint_).substr(0, 16), learner_->facts().step, served_version_.value,
               buffer_.requests(),
               buffer_.next_sequence() - std::min(buffer_.next_sequence(), next_to_train_));
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
  std::optional<PrequentialGate::Decision> decision;
  const std::uint64_t waiting =
      buffer_.next_sequence() - std::min(buffer_.next_sequence(), next_to_train_);
  if (!learner_->work(waiting)) {
    if (!gate_.has_candidate() && learner_->facts().step > proposed_step_) propose();
    if (waiting == 0) return false;
    const auto next = buffer_.first_from(next_to_train_);
    if (!next) {  // what is left was deleted as too old, or is damaged
      next_to_train_ = buffer_.next_sequence();
      return false;
    }
    // Scored before it is learned from.
    decision = gate_.score(next->trace, fusion_positions(next->trace));
    learner_->observe(next->sequence, next->trace);
    next_to_train_ = next->sequence + 1;
  }
  if (decision) {
    verdict_ = decision->verdict;
    if (decision->promoted) {
      publish(*decision);
    } else {
      spdlog::info("step {}: {}", learner_->facts().step, verdict_);
    }
  }
  if (decision || clock_.monotonic() - last_checkpoint_ >= kCheckpointInterval) {
    if (auto s = checkpoint(); !s) spdlog::warn("{}", s.error().message);
  }
  return true;
}

void TrainingSession::propose() {
  const Bundle snapshot = learner_->snapshot();
  const auto table = fusion_table_of(snapshot);
  if (!table) {
    spdlog::error("no candidate: {}", table.error().message);
    return;
  }
  proposed_step_ = learner_->facts().step;
  gate_.propose(
      {*table, proposed_step_, snapshot.trained_tokens, snapshot.trained_requests, snapshot.loss});
}

void TrainingSession::publish(const PrequentialGate::Decision& decision) {
  Bundle bundle = bundle_of(decision.candidate.table);
  bundle.version = versions_.next();
  bundle.parent = served_version_;
  bundle.model_fingerprint = fingerprint_;
  bundle.trained_tokens = decision.candidate.trained_tokens;
  bundle.trained_requests = decision.candidate.trained_requests;
  bundle.created_unix_ms = clock_.unix_ms();
  bundle.loss = decision.candidate.loss;
  bundle.verdict = decision.verdict;
  auto bytes = versions_.add(bundle);
  if (!bytes) {
    spdlog::error("version {} is not published: {}", bundle.version.value, bytes.error().message);
    return;
  }
  // The number is taken on disk (file, then checkpoint) before any server can see it.
  const SpeculatorVersion previous = served_version_;
  served_version_ = bundle.version;
  if (auto s = checkpoint(); !s) {
    spdlog::error("version {} is not published: {}", bundle.version.value, s.error().message);
    served_version_ = previous;
    return;
  }
  sender_.publish(bundle.version, std::move(bytes).value());
  spdlog::info("published version {} (step {}, {} requests, {} tokens, loss {:.4f}): {}",
               bundle.version.value, decision.candidate.step, bundle.trained_requests,
               bundle.trained_tokens, bundle.loss, bundle.verdict);
}

void TrainingSession::heard(const ServerHello& hello) {
  if (hello.model_fingerprint != fingerprint_) return;
  if (hello.served > versions_.highest()) {
    spdlog::warn(
        "the server serves version {}, the newest here is {}: numbering goes on from the server's",
        hello.served.value, versions_.highest().value);
    versions_.reserve_up_to(hello.served);
  }
  sender_.heard(hello);
}

Status TrainingSession::checkpoint() {
  last_checkpoint_ = clock_.monotonic();
  return write_checkpoint(checkpoint_path(folder_),
                          {next_to_train_, learner_->state(), gate_.state(), versions_.highest(),
                           served_version_, verdict_});
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
  status.verdict = verdict_;
  return status;
}

}  // namespace foretoken::trainer
