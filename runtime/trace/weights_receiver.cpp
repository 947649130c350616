#include "runtime/trace/weights_receiver.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "foretoken/protocol/failure.h"

namespace foretoken {
namespace {

constexpr std::chrono::seconds kTrainerSilence{5};

constexpr Refusal refusal{"bundle"};

}  // namespace

WeightsReceiver::WeightsReceiver(const ModelFingerprint& fingerprint, TrustedSigners trusted,
                                 VersionKeeper& keeper, const Clock& clock)
    : fingerprint_(fingerprint), trusted_(std::move(trusted)), keeper_(keeper), clock_(clock) {}

void WeightsReceiver::handle(const Message& message) {
  auto type = check_envelope(message);
  if (!type) return refuse(type.error(), {});
  if (*type == MessageType::kTrainerStatus) {
    auto status = parse_trainer_status(message);
    if (!status) return refuse(status.error(), {});
    // A trainer that was not here, or was another process, a moment ago wants to know what is
    // served.
    news_ = news_ || !trainer() || trainer_->run != status->run;
    trainer_ = std::move(status).value();
    trainer_heard_ = clock_.monotonic();
    return;
  }
  if (*type != MessageType::kBundleChunk) {
    return refuse(Error{ErrorCode::kInvalidInput, "protocol: a message that only a server sends"},
                  {});
  }
  auto chunk = parse_bundle_chunk(message);
  if (!chunk) return refuse(chunk.error(), {});
  auto whole = assembler_.add(std::move(chunk).value());
  if (!whole) return refuse(whole.error(), {});
  if (!whole->has_value()) return;
  ++bundles_received_;
  // Only of a bundle whose signature held is it known which version it is: what anybody may write
  // on a chunk must not make the trainer think that its version was refused.
  auto bundle = parse(**whole);
  if (!bundle) return refuse(bundle.error(), {});
  if (auto s = keeper_.offer(*bundle, **whole); !s) refuse(s.error(), bundle->version);
}

Result<Bundle> WeightsReceiver::parse(std::span<const std::byte> bytes) const {
  auto bundle = parse_bundle(bytes, trusted_);
  if (bundle && bundle->model_fingerprint != fingerprint_) {
    return refusal("fingerprint", "found {}, wanted {}", to_hex(bundle->model_fingerprint),
                   to_hex(fingerprint_));
  }
  return bundle;
}

SpeculatorVersion WeightsReceiver::refused() const { return std::max(refused_, keeper_.refused()); }

std::string WeightsReceiver::refused_reason() const {
  const SpeculatorVersion by_keeper = keeper_.refused();
  return by_keeper.value > 0 && by_keeper >= refused_ ? keeper_.refused_reason() : refused_reason_;
}

void WeightsReceiver::refuse(const Error& error, SpeculatorVersion version) {
  const std::string reason = error.message.substr(0, error.message.find(':'));
  const std::int64_t count = ++rejected_[reason];
  // A freeze passes: the keeper says while it lasts.
  if (reason != "frozen" && version.value != 0) {
    refused_ = std::max(refused_, version);
    refused_reason_ = error.message;
  }
  news_ = news_ || version.value != 0;
  // Powers of two: a hostile or broken peer cannot fill the log.
  if ((count & (count - 1)) == 0) spdlog::warn("refused ({} so far): {}", count, error.message);
}

std::optional<TrainerStatus> WeightsReceiver::trainer() const {
  if (!trainer_ || clock_.monotonic() - trainer_heard_ > kTrainerSilence) return std::nullopt;
  return trainer_;
}

}  // namespace foretoken
