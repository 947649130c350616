// Strong vocabulary types shared by the server and the trainer.
#pragma once

#include <compare>
#include <cstdint>

namespace foretoken {

using TokenId = std::int32_t;  // an index of the *target's* vocabulary

// A request as the server numbered it, unique within one server run.
struct RequestId {
  std::uint64_t value = 0;
  auto operator<=>(const RequestId&) const = default;
};

// Versions of learned weights: 0 is "as shipped"; the trainer numbers upwards, never twice.
struct SpeculatorVersion {
  std::uint64_t value = 0;
  auto operator<=>(const SpeculatorVersion&) const = default;
};

// Which speculator proposed a token: the number of its row in runtime/speculate/registry.h, which
// names it. Part of the trace format: rows are appended, and a new one needs no name here.
enum class SpeculatorKind : std::uint8_t {
  kNone = 0,
  kNgram = 1,
  kFusion = 2,
  kModel = 3,
  kHead = 4
};
inline constexpr int kSpeculatorKinds = 16;  // at most: the size of tables by kind

}  // namespace foretoken
