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
  auto versions = VersionStore::open(folder / "versions");
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
      learner_(options.learner, FusionTable::initial()),
      gate_(options.publish_every_requests, FusionTable::initial()),
      last_checkpoint_(clock.monotonic()) {}

void TrainingSession::resume() {
  auto checkpoint = read_checkpoint(checkpoint_path(folder_));
  if (checkpoint) {
    learner_.restore(checkpoint->learner);
    gate_.restore(checkpoint->gate);
    versions_.reserve_up_to(checkpoint->highest_version);
    served_version_ = checkpoint->served_version;
    next_to_train_ = checkpoint->next_sequence;
    trained_tokens_ = checkpoint->trained_tokens;
    trained_requests_ = checkpoint->trained_requests;
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
  next_to_queue_ = next_to_train_;
  spdlog::info("model {}: step {}, version {}, {} requests in the buffer, {} not yet learned from",
               to_hex(fingerprint_).substr(0, 16), learner_.step(), served_version_.value,
               buffer_.requests(),
               buffer_.next_sequence() - std::min(buffer_.next_sequence(), next_to_train_));
}

Status TrainingSession::ingest(const Message& message, RequestTrace trace) {
  if (trace.model_fingerprint != fingerprint_) {
    return Error{ErrorCode::kInvalidInput, "fingerprint: trace: of another model"};
  }
  if (buffer_.contains(trace.server_run, trace.request.value)) {
    return Error{ErrorCode::kInvalidInput, "duplicate: trace: this request is in the buffer"};
  }
  auto sequence = buffer_.append(message, trace.server_run, trace.request.value);
  if (!sequence) return Error{sequence.error().code, "disk: " + sequence.error().message};
  // In order, or not at all: what does not fit is read back from the buffer.
  if (*sequence == next_to_queue_ && pending_.size() < options_.pending_requests)
    queue(*sequence, std::move(trace));
  return Ok{};
}

void TrainingSession::queue(std::uint64_t sequence, RequestTrace trace) {
  Pending pending{sequence, {}, fusion_positions(trace)};
  for (GeneratedTokenTrace& generated : trace.generated) {
    generated.top_ids = {};
    generated.top_logits = {};
  }
  trace.tap_values = {};
  trace.tap_scales = {};
  pending.trace = std::move(trace);
  pending_positions_ += pending.positions.size();
  pending_.push_back(std::move(pending));
  next_to_queue_ = sequence + 1;
}

void TrainingSession::refill() {
  if (!pending_.empty() || next_to_queue_ >= buffer_.next_sequence()) return;
  buffer_.read(next_to_queue_, [&](std::uint64_t sequence, RequestTrace trace) {
    queue(sequence, std::move(trace));
    return pending_.size() < options_.pending_requests;
  });
  // Nothing readable was left: deleted as too old, or damaged.
  if (pending_.empty()) next_to_queue_ = next_to_train_ = buffer_.next_sequence();
}

bool TrainingSession::work() {
  refill();
  if (pending_positions_ < std::size_t(options_.learner.positions_per_step)) {
    // Requests without a single candidate would otherwise wait for ever at the head of a full
    // queue.
    if (pending_.size() < options_.pending_requests) return false;
  }
  std::vector<FusionPosition> group;
  std::optional<PrequentialGate::Decision> decision;
  while (!pending_.empty() && group.size() < std::size_t(options_.learner.positions_per_step) &&
         !decision) {
    Pending request = std::move(pending_.front());
    pending_.pop_front();
    pending_positions_ -= request.positions.size();
    decision = gate_.score(request.trace, request.positions);  // before it is learned from
    group.insert(group.end(), request.positions.begin(), request.positions.end());
    trained_tokens_ += std::int64_t(request.trace.generated.size());
    ++trained_requests_;
    next_to_train_ = request.sequence + 1;
  }
  learner_.train(group);
  if (decision) {
    verdict_ = decision->verdict;
    if (decision->promoted) {
      publish(*decision);
    } else {
      spdlog::info("step {}: {}", learner_.step(), verdict_);
    }
  }
  if (!gate_.has_candidate()) {
    gate_.propose(
        {learner_.average(), learner_.step(), trained_tokens_, trained_requests_, learner_.loss()});
  }
  if (decision || clock_.monotonic() - last_checkpoint_ >= kCheckpointInterval) {
    if (auto s = checkpoint(); !s) spdlog::warn("{}", s.error().message);
  }
  return true;
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
  return write_checkpoint(
      checkpoint_path(folder_),
      {options_.learner.objective, next_to_train_, trained_tokens_, trained_requests_,
       learner_.state(), gate_.state(), versions_.highest(), served_version_, verdict_});
}

TrainerStatus TrainingSession::status() const {
  TrainerStatus status;
  status.model_fingerprint = fingerprint_;
  status.current = sender_.current();
  status.step = learner_.step();
  status.loss = learner_.loss();
  status.trained_tokens = trained_tokens_;
  status.trained_requests = trained_requests_;
  status.buffer_requests = buffer_.requests();
  status.buffer_bytes = std::int64_t(buffer_.bytes());
  status.verdict = verdict_;
  return status;
}

}  // namespace foretoken::trainer
