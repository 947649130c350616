#include "runtime/trace/weights_receiver.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "runtime/evaluate/fusion_bundle.h"

namespace foretoken {
namespace {

constexpr std::chrono::seconds kTrainerSilence{5};

Error refusal(const char* reason, std::string text) {
  return Error{ErrorCode::kInvalidInput, fmt::format("{}: bundle: {}", reason, text)};
}

}  // namespace

WeightsReceiver::WeightsReceiver(const ModelFingerprint& fingerprint, TrustedSigners trusted,
                                 std::optional<StateDir> state, const Clock& clock)
    : fingerprint_(fingerprint),
      trusted_(std::move(trusted)),
      state_(std::move(state)),
      clock_(clock) {}

void WeightsReceiver::restore(const OnTable& on_table) {
  if (!state_) return;
  const auto bytes = state_->load_bundle(trusted_);
  if (!bytes) return;
  if (auto s = accept(*bytes, on_table, true); !s) {
    spdlog::warn("{} is not served: {}", state_->bundle_path().string(), s.error().message);
  }
}

void WeightsReceiver::handle(const Message& message, const OnTable& on_table) {
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
  const SpeculatorVersion version = chunk->version;
  auto whole = assembler_.add(std::move(chunk).value());
  if (!whole) return refuse(whole.error(), version);
  if (!whole->has_value()) return;
  ++bundles_received_;
  if (auto s = accept(**whole, on_table, false); !s) refuse(s.error(), version);
}

Status WeightsReceiver::accept(std::span<const std::byte> bytes, const OnTable& on_table,
                               bool from_disk) {
  const std::uint64_t hash = content_hash(bytes);
  if (served_.value != 0 && hash == served_hash_)
    return Ok{};  // sent again before our hello arrived
  auto bundle = parse_bundle(bytes, trusted_);
  if (!bundle) return bundle.error();
  if (bundle->model_fingerprint != fingerprint_) {
    return refusal("fingerprint",
                   fmt::format("found {}, wanted {}", to_hex(bundle->model_fingerprint),
                               to_hex(fingerprint_)));
  }
  if (bundle->version <= served_) {
    return refusal("version",
                   fmt::format("found {}, wanted above {}", bundle->version.value, served_.value));
  }
  auto table = fusion_table_of(*bundle);
  if (!table) return table.error();
  if (!from_disk && state_) {
    // Served all the same if the disk refuses: only a restart would miss it.
    if (auto s = state_->store_bundle(bytes); !s) {
      spdlog::warn("speculator version {} is not kept: {}", bundle->version.value,
                   s.error().message);
    }
  }
  served_ = bundle->version;
  served_hash_ = hash;
  news_ = true;
  on_table(std::make_shared<const FusionTable>(*table), served_);
  spdlog::info("speculator version {} {}: {} requests, {} tokens, loss {:.4f}{}{}", served_.value,
               from_disk ? "restored" : "swapped in", bundle->trained_requests,
               bundle->trained_tokens, bundle->loss,
               bundle->verdict.empty() ? "" : "; gate: ", bundle->verdict);
  return Ok{};
}

void WeightsReceiver::refuse(const Error& error, SpeculatorVersion version) {
  const std::string reason = error.message.substr(0, error.message.find(':'));
  const std::int64_t count = ++rejected_[reason];
  refused_ = std::max(refused_, version);
  refused_reason_ = error.message;
  news_ = news_ || version.value != 0;
  // Powers of two: a hostile or broken peer cannot fill the log.
  if ((count & (count - 1)) == 0) spdlog::warn("refused ({} so far): {}", count, error.message);
}

std::optional<TrainerStatus> WeightsReceiver::trainer() const {
  if (!trainer_ || clock_.monotonic() - trainer_heard_ > kTrainerSilence) return std::nullopt;
  return trainer_;
}

}  // namespace foretoken
