#include "runtime/serve/json_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace foretoken {

namespace json = boost::json;

std::variant<json::object, ApiError> parse_object(std::string_view body) {
  json::parse_options options;
  options.max_depth = 32;
  json::error_code code;
  json::value value = json::parse(body, code, {}, options);
  if (code)
    return ApiError{400, "invalid_json",
                    fmt::format("the body is not valid JSON: {}", code.message())};
  if (!value.is_object())
    return ApiError::invalid(
        "", fmt::format("the body: found {}, wanted a JSON object", json_kind(value)));
  return std::move(value.get_object());
}

std::string json_kind(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return value.get_bool() ? "true" : "false";
    case json::kind::int64:
      return fmt::format("the number {}", value.get_int64());
    case json::kind::uint64:
      return fmt::format("the number {}", value.get_uint64());
    case json::kind::double_:
      return fmt::format("the number {:g}", value.get_double());
    case json::kind::string: {
      const auto& s = value.get_string();
      // Cut at an ASCII boundary so that the message itself stays valid UTF-8.
      std::string shown(s.data(), std::min<std::size_t>(s.size(), 40));
      while (!shown.empty() && (static_cast<unsigned char>(shown.back()) & 0x80)) shown.pop_back();
      return fmt::format("the string \"{}\"{}", shown, shown.size() < s.size() ? "..." : "");
    }
    case json::kind::array:
      return fmt::format("an array of {}", value.get_array().size());
    case json::kind::object:
      return "an object";
  }
  return "something else";
}

void JsonFields::fail(ApiError error) {
  if (error_) return;
  if (outer_) outer_->fail(error);
  error_ = std::move(error);
}

void JsonFields::missing(std::string_view name, std::string_view wanted) {
  const std::string field = fmt::format("{}{}", prefix_, name);
  fail(ApiError::invalid(field, fmt::format("{}: missing, wanted {}", field, wanted)));
}

void JsonFields::unsupported(std::string_view name, std::string_view why) {
  const std::string field = fmt::format("{}{}", prefix_, name);
  fail(ApiError::unsupported(field, field + std::string(why)));
}

void JsonFields::wrong(std::string_view name, const json::value& found, std::string_view wanted) {
  fail(ApiError::invalid(
      fmt::format("{}{}", prefix_, name),
      fmt::format("{}{}: found {}, wanted {}", prefix_, name, json_kind(found), wanted)));
}

const json::value* JsonFields::find(std::string_view name) {
  known_.emplace_back(name);
  const json::value* value = object_.if_contains(json::string_view(name.data(), name.size()));
  return value && !value->is_null() ? value : nullptr;
}

template <class T>
const T* JsonFields::held(std::string_view name, const T* (json::value::*get)() const noexcept,
                          std::string_view wanted) {
  const json::value* value = find(name);
  if (!value) return nullptr;
  const T* found = (value->*get)();
  if (!found) wrong(name, *value, wanted);
  return found;
}

bool JsonFields::boolean(std::string_view name, bool fallback) {
  const bool* found = held<bool>(name, &json::value::if_bool, "true or false");
  return found ? *found : fallback;
}

std::int64_t JsonFields::integer(std::string_view name, std::int64_t fallback, std::int64_t low,
                                 std::int64_t high) {
  const json::value* value = find(name);
  if (!value) return fallback;
  std::optional<std::int64_t> found;
  if (value->is_int64()) {
    found = value->get_int64();
  } else if (value->is_double()) {
    // Some clients write 16.0; 2^53 bounds what a double holds exactly.
    double d = value->get_double();
    if (std::isfinite(d) && d == std::trunc(d) && std::abs(d) <= 9007199254740992.0)
      found = static_cast<std::int64_t>(d);
  }
  if (found && *found >= low && *found <= high) return *found;
  wrong(name, *value, fmt::format("an integer from {} to {}", low, high));
  return fallback;
}

double JsonFields::number(std::string_view name, double fallback, double low, double high) {
  const json::value* value = find(name);
  if (!value) return fallback;
  if (value->is_number()) {
    const auto d = value->to_number<double>();
    if (std::isfinite(d) && d >= low && d <= high) return d;
  }
  wrong(name, *value, fmt::format("a number from {:g} to {:g}", low, high));
  return fallback;
}

std::string JsonFields::string(std::string_view name, std::string fallback) {
  const auto* found = held<json::string>(name, &json::value::if_string, "a string");
  return found ? std::string(*found) : fallback;
}

const json::object* JsonFields::object(std::string_view name) {
  return held<json::object>(name, &json::value::if_object, "an object");
}

const json::array* JsonFields::array(std::string_view name) {
  return held<json::array>(name, &json::value::if_array, "an array");
}

std::vector<std::string> JsonFields::unknown() const {
  std::vector<std::string> names;
  for (const auto& entry : object_) {
    std::string name(entry.key());
    if (std::find(known_.begin(), known_.end(), name) == known_.end())
      names.push_back(prefix_ + name);
    if (names.size() == 16) break;  // enough for a warning
  }
  return names;
}

}  // namespace foretoken
