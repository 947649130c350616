// Reads the fields of a JSON object one by one, strictly: a wrong type or range is an error that
// names the field, what was found and what was wanted. A missing field and null mean the default.
// The first error stays; later reads then return defaults, so a parser reads everything and checks
// once.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/serve/api_error.h"

namespace foretoken {

// A body, which must be an object. Depth is limited to 32, invalid UTF-8 and trailing bytes are
// refused.
std::variant<boost::json::object, ApiError> parse_object(std::string_view body);
std::string json_kind(
    const boost::json::value& value);  // "a string", "an array of 3", "the number 1e+99"

class JsonFields {
 public:
  // prefix: how errors name the object, e.g. "stream_options."; "" for the body. outer: what the
  // object is part of, whose error its first one becomes.
  JsonFields(const boost::json::object& object, std::string prefix = "",
             JsonFields* outer = nullptr)
      : object_(object), prefix_(std::move(prefix)), outer_(outer) {}

  const boost::json::value* find(
      std::string_view name);  // null if missing or JSON null; marks it as known
  bool boolean(std::string_view name, bool fallback);
  std::int64_t integer(std::string_view name, std::int64_t fallback, std::int64_t low,
                       std::int64_t high);
  double number(std::string_view name, double fallback, double low, double high);
  std::string string(std::string_view name, std::string fallback = "");
  const boost::json::object* object(std::string_view name);
  const boost::json::array* array(std::string_view name);

  void fail(ApiError error);
  void wrong(std::string_view name, const boost::json::value& found, std::string_view wanted);
  void missing(std::string_view name, std::string_view wanted);
  void unsupported(std::string_view name, std::string_view why = " is not supported");
  const std::optional<ApiError>& error() const { return error_; }
  std::vector<std::string> unknown() const;  // fields nobody asked for

 private:
  template <class T>
  const T* held(std::string_view name, const T* (boost::json::value::*get)() const noexcept,
                std::string_view wanted);

  const boost::json::object& object_;
  std::string prefix_;
  JsonFields* outer_;
  std::vector<std::string> known_;
  std::optional<ApiError> error_;
};

}  // namespace foretoken
