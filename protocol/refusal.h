// How a parser of this folder refuses: "reason: part: what", the reason being the name that drop
// counters use.
#pragma once

#include <fmt/format.h>

#include <utility>

#include "foretoken/protocol/result.h"

namespace foretoken {

struct Refusal {
  const char* part;  // of the protocol
  template <class... Args>
  Error operator()(const char* reason, fmt::format_string<Args...> format, Args&&... args) const {
    return {
        ErrorCode::kInvalidInput,
        fmt::format("{}: {}: {}", reason, part, fmt::format(format, std::forward<Args>(args)...))};
  }
};

}  // namespace foretoken
