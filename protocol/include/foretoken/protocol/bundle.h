// The weight bundle: what the trainer publishes and the server swaps in. A FlatBuffers header
// (format version, speculator version, parent, model fingerprint, kind, tensor directory, training
// facts), raw tensors, a BLAKE2b digest over both, and the trainer's Ed25519 signature over
// everything before it. Parsed as hostile input; nothing behind the preamble is interpreted before
// digest and signature are found good. Byte layout: PROTOCOL.md.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "foretoken/protocol/signing.h"

namespace foretoken {

// The values are part of the bundle format. Q8_0 and Q4_0 are GGML's blocks of 32 weights along
// the last extent: fp16 scale, then 32 int8 (34 bytes) or 16 bytes of nibbles less 8, low nibbles
// first (18 bytes). Bool is a byte, 0 or 1.
enum class TensorType : std::uint16_t {
  kF32 = 1,
  kI32 = 2,
  kQ8_0 = 3,
  kQ4_0 = 4,
  kF16 = 5,
  kBF16 = 6,
  kI64 = 7,
  kBool = 8
};
const char* tensor_type_name(TensorType type);
// Bytes of a row-major tensor; nullopt: an extent is not positive, the last extent of a block type
// is not a multiple of 32, or the size is over kMaxTensorBytes.
std::optional<std::uint64_t> tensor_bytes(TensorType type, std::span<const std::int64_t> shape);
inline constexpr std::uint64_t kMaxTensorBytes = std::uint64_t{1} << 30;

struct BundleTensor {
  TensorType type = TensorType::kF32;
  std::vector<std::int64_t> shape;  // row-major
  std::vector<std::byte> bytes;     // tensor_bytes(type, shape) of them

  static BundleTensor f32(std::vector<std::int64_t> shape, std::span<const float> values);
  static BundleTensor i32(std::vector<std::int64_t> shape, std::span<const std::int32_t> values);
  static BundleTensor blocks(TensorType type, std::vector<std::int64_t> shape,
                             std::vector<std::byte> bytes);
  // Views of `bytes`; empty for a tensor of another type.
  std::span<const float> f32_values() const;
  std::span<const std::int32_t> i32_values() const;
  bool operator==(const BundleTensor&) const = default;
};

struct Bundle {
  SpeculatorVersion version, parent;
  std::array<std::uint8_t, 32> model_fingerprint{};
  std::string kind;                             // "fusion", "head", "eagle3"
  std::map<std::string, BundleTensor> tensors;  // names and shapes by kind: PROTOCOL.md
  std::int64_t trained_tokens = 0, trained_requests = 0, created_unix_ms = 0;
  double loss = 0;
  std::string verdict;        // the gate's, as text
  std::string config;         // of an imported architecture: its own, as text
  SigningPublicKey signer{};  // filled by the parsers: whose signature it carries
};

std::vector<std::byte> serialize(const Bundle& bundle, const SigningKey& key);

// Checks length, magic, format version, digest, signature, directory, types, finiteness (of the
// scales, for block types). Error messages begin with the reason's name used by the drop counters:
// "truncated: ", "magic: ", "format: " (another format version), "checksum: ", "signature: "
// (missing, of a key that is not trusted, or wrong), "shape: ", "non-finite: ".
Result<Bundle> parse_bundle(std::span<const std::byte> bytes, const TrustedSigners& trusted);
// The same, whoever signed it: to look at a file. Never for weights that are to be served.
Result<Bundle> parse_bundle_of_anyone(std::span<const std::byte> bytes);

}  // namespace foretoken
