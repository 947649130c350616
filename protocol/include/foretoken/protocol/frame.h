// The envelope: frame 0 of every message, 32 bytes, little-endian.
//   0  magic "FTKN"      4  u16 protocol version     6  u16 message type
//   8  u32 frames after this one, 1..kMaxFrames      12 u32 zero
//   16 u64 xxh3 of the frames after this one (each preceded by its length as u64)
//   24 u64 xxh3 of bytes 0..24
// So a flipped bit or a lost frame anywhere in a message is an error, never another message.
// Parsed as hostile input; the layout and the version rules are in PROTOCOL.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken {

using Frame = std::vector<std::byte>;
using Message = std::vector<Frame>;

inline constexpr std::uint16_t kProtocolVersion = 2;
// Older messages are read as well: trace segments outlive processes.
inline constexpr std::uint16_t kOldestProtocolVersion = 1;
inline constexpr std::size_t kMaxFrames = 64;
// A request of 8192 tokens with four taps of 8192 fp16 values is 512 MiB: the largest message
// accepted.
inline constexpr std::size_t kMaxMessageBytes = std::size_t{1} << 29;

enum class MessageType : std::uint16_t {
  kTrace = 1,
  kServerHello = 2,
  kTrainerStatus = 3,
  kBundleChunk = 4,
};

std::size_t total_bytes(std::span<const Frame> message);

// Puts the envelope in front of `frames`.
Message seal(MessageType type, std::vector<Frame> frames);
// Checks envelope and checksum. Errors begin with the reason's name used by the drop counters:
// "truncated: ", "magic: ", "protocol: " (another version), "checksum: ".
Result<MessageType> check_envelope(std::span<const Frame> message);

// xxh3, 64 bits: against accidents. Against people: the bundle's BLAKE2b digest.
std::uint64_t content_hash(std::span<const std::byte> bytes);

}  // namespace foretoken
