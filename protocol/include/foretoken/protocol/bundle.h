// The weight bundle: what the trainer publishes and the server swaps in. A FlatBuffers header (format
// version, speculator version, parent, model fingerprint, kind, tensor directory, training facts) and raw
// tensors, with a BLAKE2b digest over everything. Parsed as hostile input. Byte layout: PROTOCOL.md.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"

namespace foretoken {

struct BundleTensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;             // fp32 on the wire for now; other dtypes are refused by name
};

struct Bundle {
  SpeculatorVersion version, parent;
  std::array<std::uint8_t, 32> model_fingerprint{};
  std::string kind;                      // "fusion"
  std::map<std::string, BundleTensor> tensors;   // "fusion.bias" [65], "fusion.other" [1]
  std::int64_t trained_tokens = 0, trained_requests = 0, created_unix_ms = 0;
  double loss = 0;
  std::string verdict;                   // the gate's, as text; empty while there is no gate
};

std::vector<std::byte> serialize(const Bundle& bundle);
// Checks length, magic, format version, digest, directory, dtypes, finiteness. Error messages begin with
// the reason's name used by the drop counters: "truncated: ", "magic: ", "format: " (another format version),
// "checksum: ", "shape: ", "non-finite: ".
Result<Bundle> parse_bundle(std::span<const std::byte> bytes);

}  // namespace foretoken
