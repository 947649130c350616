// Result<T>: an expected failure as a value (exceptions end at the border of the library that
// throws them). Error messages name the input, the field, what was found and what was wanted.
//   Result<int> parse(...) { return Error{ErrorCode::kInvalidInput, "x.gguf: ..."}; }
//   auto r = parse(...); if (!r) return r.error();
#pragma once

#include <cassert>
#include <string>
#include <utility>
#include <variant>

namespace foretoken {

enum class ErrorCode {
  kInvalidInput,  // hostile or malformed bytes, requests, files
  kNotFound,      // a file, model, version or route that is not there
  kUnsupported,   // well-formed, but outside what this build can do
  kOutOfRange,    // over a stated limit (context length, pool size)
  kUnavailable,   // a peer is gone, a queue is full, the process is draining
  kIo,            // the operating system said no
  kInternal,      // a bug: report it
};

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit
  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & {
    assert(ok());
    return std::get<0>(state_);
  }
  const T& value() const& {
    assert(ok());
    return std::get<0>(state_);
  }
  T&& value() && {
    assert(ok());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const {
    assert(!ok());
    return std::get<1>(state_);
  }

 private:
  std::variant<T, Error> state_;
};

// Success without a value.
struct Ok {};
using Status = Result<Ok>;

}  // namespace foretoken
