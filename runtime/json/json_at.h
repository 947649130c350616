// Out of a JSON document that somebody else wrote, by JSON pointer ("/kv/occupancy"): what is
// missing or of another type is none. Pure functions; any thread.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string_view>

namespace foretoken {

// JSON null where there is no such value.
inline const boost::json::value& json_at(const boost::json::value& root, std::string_view pointer) {
  static const boost::json::value none;
  boost::json::error_code error;
  const boost::json::value* found = root.find_pointer(pointer, error);
  return found ? *found : none;
}

inline std::optional<double> number_at(const boost::json::value& root, std::string_view pointer) {
  const boost::json::value& v = json_at(root, pointer);
  if (!v.is_number()) return std::nullopt;
  return v.to_number<double>();
}

inline std::string_view string_at(const boost::json::value& root, std::string_view pointer) {
  const boost::json::value& v = json_at(root, pointer);
  return v.is_string() ? std::string_view(v.get_string()) : std::string_view();
}

}  // namespace foretoken
