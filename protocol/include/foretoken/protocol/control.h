// The small messages of the link: the server's hello, the trainer's status, and pieces of a bundle.
// Who sends what when is in PROTOCOL.md ("Conversation"). Parsed as hostile input.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "foretoken/protocol/frame.h"
#include "foretoken/protocol/ids.h"

namespace foretoken {

using ModelFingerprint = std::array<std::uint8_t, 32>;
std::string to_hex(const ModelFingerprint& fingerprint);  // 64 digits
Result<ModelFingerprint> fingerprint_from_hex(std::string_view hex);
std::uint64_t random_run_id();  // never 0

// Server to trainer, once a second and after every change of what is served.
struct ServerHello {
  std::uint64_t run = 0;
  ModelFingerprint model_fingerprint{};
  SpeculatorVersion served, refused;  // refused: the newest this run refused, 0: none
  std::string refused_reason;
  std::uint32_t requests_running = 0;
  std::uint64_t traces_sent = 0, traces_dropped = 0;
  float busy = 0;               // share of the last second in which the engine ran rounds, 0 to 1
  std::vector<float> round_ms;  // time of a round by rows, from 1 row on; empty: not measured yet
  float head_start_ms = 0, head_step_ms = 0;  // the head's cost of a draft; 0: not measured
  SpeculatorVersion canary;                   // received and on trial, or waiting for it; 0: none
  bool pause = false;  // do not train until a hello says otherwise: plain serving is measured
  SpeculatorVersion highest;  // numbers up to it are taken, whatever became of them
};

// What the trainer's gate said of one candidate.
struct CandidateVerdict {
  std::uint64_t candidate = 0;  // counted from 1 over the life of the trainer's state
  SpeculatorVersion version;    // the number it was published under, 0: refused
  std::int64_t unix_ms = 0, step = 0, requests = 0;
  std::string text;
  std::vector<std::pair<std::string, double>> figures;  // what it was decided by
  bool operator==(const CandidateVerdict&) const = default;
};
inline constexpr std::size_t kMaxVerdicts = 64, kMaxFigures = 64;

// Trainer to server, once a second.
struct TrainerStatus {
  std::uint64_t run = 0;
  std::optional<ModelFingerprint> model_fingerprint;  // nullopt: it has not heard a server yet
  SpeculatorVersion current;
  std::int64_t step = 0;
  double loss = 0;  // NaN before the first step
  std::int64_t trained_tokens = 0, trained_requests = 0;
  std::int64_t buffer_requests = 0, buffer_bytes = 0, traces_refused = 0;
  std::string verdict;
  std::vector<CandidateVerdict> verdicts;  // the last kMaxVerdicts, oldest first
};

// Bytes [offset, offset + bytes.size()) of a serialised bundle.
struct BundleChunk {
  SpeculatorVersion version;
  std::uint64_t total_bytes = 0, offset = 0, bundle_hash = 0;
  std::vector<std::byte> bytes;
};
inline constexpr std::size_t kMaxChunkBytes = std::size_t{1} << 20;
inline constexpr std::size_t kMaxBundleBytes = std::size_t{1} << 30;

Message serialize(const ServerHello& hello);
Message serialize(const TrainerStatus& status);
Message serialize(const BundleChunk& chunk);
Result<ServerHello> parse_server_hello(std::span<const Frame> message);
Result<TrainerStatus> parse_trainer_status(std::span<const Frame> message);
Result<BundleChunk> parse_bundle_chunk(std::span<const Frame> message);

// A bundle's bytes as chunks, one message each; a small bundle is one message.
std::vector<Message> chunk_bundle(SpeculatorVersion version, std::span<const std::byte> bundle,
                                  std::size_t chunk_bytes = kMaxChunkBytes);

// Puts chunks together again, whatever their order; repeats are harmless. A chunk of another bundle
// starts over with that bundle, so memory is bounded by one bundle of kMaxBundleBytes, and grows
// only with the bytes that arrived in sequence from a sender, never with a claimed size.
class BundleAssembler {
 public:
  // The whole bundle, when this chunk completed it; nullopt: more is needed.
  // Errors: "shape: ..." (does not fit what came before), "checksum: ..." (the whole does not hash
  // right).
  Result<std::optional<std::vector<std::byte>>> add(BundleChunk chunk);

 private:
  void start(const BundleChunk& chunk);
  std::uint64_t total_bytes_ = 0, bundle_hash_ = 0;
  SpeculatorVersion version_;
  std::vector<BundleChunk> pieces_;  // sorted by offset, not overlapping
  std::uint64_t received_ = 0;
};

}  // namespace foretoken
