#include "foretoken/protocol/frame.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <cstring>

#include "protocol/bytes.h"

namespace foretoken {
namespace {

constexpr std::size_t kEnvelopeBytes = 32;
constexpr char kFrameMagic[4] = {'F', 'T', 'K', 'N'};

std::uint64_t hash_frames(std::span<const Frame> frames) {
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  for (const Frame& frame : frames) {
    const std::uint64_t length = frame.size();
    XXH3_64bits_update(state, &length, sizeof length);
    XXH3_64bits_update(state, frame.data(), frame.size());
  }
  const std::uint64_t hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return hash;
}

}  // namespace

std::uint64_t content_hash(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::size_t total_bytes(std::span<const Frame> message) {
  std::size_t total = 0;
  for (const Frame& frame : message) total += frame.size();
  return total;
}

Message seal(MessageType type, std::vector<Frame> frames) {
  Frame envelope(kEnvelopeBytes);
  std::byte* at = envelope.data();
  std::memcpy(at, kFrameMagic, sizeof kFrameMagic);
  store<std::uint16_t>(at + 4, kProtocolVersion);
  store<std::uint16_t>(at + 6, static_cast<std::uint16_t>(type));
  store<std::uint32_t>(at + 8, static_cast<std::uint32_t>(frames.size()));
  store<std::uint32_t>(at + 12, 0);
  store<std::uint64_t>(at + 16, hash_frames(frames));
  store<std::uint64_t>(at + 24, content_hash({at, 24}));
  frames.insert(frames.begin(), std::move(envelope));
  return frames;
}

Result<MessageType> check_envelope(std::span<const Frame> message) {
  const auto invalid = [](std::string text) {
    return Error{ErrorCode::kInvalidInput, std::move(text)};
  };
  if (message.empty() || message[0].size() != kEnvelopeBytes) {
    return invalid(fmt::format("truncated: message envelope: found {} bytes, wanted {}",
                               message.empty() ? 0 : message[0].size(), kEnvelopeBytes));
  }
  const std::byte* at = message[0].data();
  if (std::memcmp(at, kFrameMagic, sizeof kFrameMagic) != 0)
    return invalid("magic: message does not begin with FTKN");
  // The version is looked at before the hash: another version may hash otherwise, and should be
  // named.
  if (const auto version = load<std::uint16_t>(at + 4);
      version < kOldestProtocolVersion || version > kProtocolVersion) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("protocol: message version: found {}, wanted {} to {}", version,
                             kOldestProtocolVersion, kProtocolVersion)};
  }
  if (load<std::uint64_t>(at + 24) != content_hash({at, 24})) {
    return invalid("checksum: message envelope does not match its hash");
  }
  const auto n_frames = load<std::uint32_t>(at + 8);
  if (n_frames == 0 || n_frames > kMaxFrames || load<std::uint32_t>(at + 12) != 0) {
    return invalid(
        fmt::format("truncated: message frames: found {}, wanted 1 to {}", n_frames, kMaxFrames));
  }
  if (message.size() - 1 != n_frames) {
    return invalid(fmt::format("truncated: message frames: found {}, wanted {}", message.size() - 1,
                               n_frames));
  }
  if (const std::size_t bytes = total_bytes(message); bytes > kMaxMessageBytes) {
    return invalid(
        fmt::format("truncated: message of {} bytes, at most {}", bytes, kMaxMessageBytes));
  }
  if (load<std::uint64_t>(at + 16) != hash_frames(message.subspan(1))) {
    return invalid("checksum: message frames do not match their hash");
  }
  const auto type = load<std::uint16_t>(at + 6);
  if (type < 1 || type > static_cast<std::uint16_t>(MessageType::kBundleChunk)) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("protocol: message type {} is not known", type)};
  }
  return static_cast<MessageType>(type);
}

}  // namespace foretoken
