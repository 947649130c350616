// Errors with a text made from parts: failure(ErrorCode::kIo, "{}: cannot be written", path).
#pragma once

#include <fmt/format.h>

#include <utility>

#include "foretoken/protocol/result.h"

namespace foretoken {

template <class... Args>
Error failure(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  return {code, fmt::format(text, std::forward<Args>(args)...)};
}

// Of input that begins with a reason by which it is counted: with what = "head",
// refusal("shape", "found {}", n) is "shape: head: found 3".
struct Refusal {
  const char* what;
  template <class... Args>
  Error operator()(const char* reason, fmt::format_string<Args...> text, Args&&... args) const {
    return failure(ErrorCode::kInvalidInput, "{}: {}: {}", reason, what,
                   fmt::format(text, std::forward<Args>(args)...));
  }
};

}  // namespace foretoken
