#include "runtime/text/jinja/value.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cmath>

#include "runtime/unicode/unicode.h"

namespace foretoken::jinja {
namespace {

constexpr int kMaxValueDepth = 100;

// Python's repr() of a float: the shortest digits that read back the same, exponent below 1e-4 and
// from 1e16.
std::string float_text(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v > 0 ? "inf" : "-inf";
  char buffer[400];
  const double size = std::fabs(v);
  const bool exponent = v != 0 && (size < 1e-4 || size >= 1e16);
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, v,
                    exponent ? std::chars_format::scientific : std::chars_format::fixed)
          .ptr;
  std::string out(buffer, end);
  if (!exponent && out.find('.') == std::string::npos) out += ".0";
  return out;
}

bool printable(char32_t c) {
  if (c == ' ') return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

std::string string_repr(const std::string& text) {
  const char quote =
      text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (std::string_view character : characters(text)) {
    const char32_t c = utf8_step(character).code_point;
    if (c == U'\n')
      out += "\\n";
    else if (c == U'\r')
      out += "\\r";
    else if (c == U'\t')
      out += "\\t";
    else if (c == U'\\' || c == static_cast<char32_t>(quote))
      out.append("\\").append(character);
    else if (printable(c))
      out += character;
    else if (c < 0x100)
      out += fmt::format("\\x{:02x}", std::uint32_t(c));
    else if (c < 0x10000)
      out += fmt::format("\\u{:04x}", std::uint32_t(c));
    else
      out += fmt::format("\\U{:08x}", std::uint32_t(c));
  }
  return out + quote;
}

std::string json_string(const std::string& text) {
  return boost::json::serialize(boost::json::string_view(text));
}

// `write` adds one element; the brackets, commas and line breaks are the same for lists and maps.
template <class Elements, class Write>
void json_sequence(std::string& out, const Elements& elements, const char* brackets, int indent,
                   int depth, Write write) {
  out += brackets[0];
  bool first = true;
  for (const auto& element : elements) {
    if (!first) out += indent < 0 ? ", " : ",";
    if (indent >= 0) out += '\n' + std::string(std::size_t(indent) * std::size_t(depth + 1), ' ');
    write(element);
    first = false;
  }
  if (indent >= 0 && !first)
    out += '\n' + std::string(std::size_t(indent) * std::size_t(depth), ' ');
  out += brackets[1];
}

void write_json(std::string& out, const Value& v, int indent, int depth) {
  if (v.is_none())
    out += "null";
  else if (v.is_bool())
    out += v.integer() ? "true" : "false";
  else if (v.is_int())
    out += std::to_string(v.integer());
  else if (v.is_float())
    out += std::isnan(v.number())   ? "NaN"
           : std::isinf(v.number()) ? (v.number() > 0 ? "Infinity" : "-Infinity")
                                    : float_text(v.number());
  else if (v.is_string())
    out += json_string(v.string());
  else if (v.is_list())
    json_sequence(out, v.list(), "[]", indent, depth,
                  [&](const Value& element) { write_json(out, element, indent, depth + 1); });
  else if (v.is_map())
    json_sequence(out, v.map().entries, "{}", indent, depth, [&](const auto& entry) {
      out += json_string(entry.first) + ": ";
      write_json(out, entry.second, indent, depth + 1);
    });
  else
    throw TemplateError{
        fmt::format("tojson: an object of type {} is not JSON serializable", v.type_name())};
}

}  // namespace

const Value* Map::find(std::string_view key) const {
  for (const auto& [name, value] : entries)
    if (name == key) return &value;
  return nullptr;
}

Value::Value(List v) {
  for (const Value& element : v) depth_ = std::max(depth_, element.depth_ + 1);
  if (depth_ > kMaxValueDepth) throw TemplateError{"lists nested too deeply"};
  held_ = std::make_shared<const List>(std::move(v));
}

Value Value::tuple(List v) {
  Value out(std::move(v));
  out.tuple_ = true;
  return out;
}

Value::Value(Map v) {
  for (const auto& [key, value] : v.entries) depth_ = std::max(depth_, value.depth_ + 1);
  if (depth_ > kMaxValueDepth) throw TemplateError{"maps nested too deeply"};
  held_ = std::make_shared<const Map>(std::move(v));
}

std::int64_t Value::integer() const {
  return is_bool() ? std::get<bool>(held_) : std::get<std::int64_t>(held_);
}

double Value::number() const {
  return is_float() ? std::get<double>(held_) : static_cast<double>(integer());
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_float()) return number() != 0;
  if (is_number()) return integer() != 0;
  if (is_string()) return !string().empty();
  if (is_list()) return !list().empty();
  if (is_map()) return !map().entries.empty();
  return true;
}

const char* Value::type_name() const {
  constexpr const char* names[] = {"Undefined", "NoneType",    "bool", "int",
                                   "float",     "str",         "list", "dict",
                                   "Namespace", "LoopContext", "Macro"};
  return names[held_.index()];
}

std::string Value::str() const {
  if (is_string()) return string();
  if (is_undefined()) return "";
  return repr();
}

std::string Value::repr() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "None";
  if (is_bool()) return integer() ? "True" : "False";
  if (is_int()) return std::to_string(integer());
  if (is_float()) return float_text(number());
  if (is_string()) return string_repr(string());
  std::string out;
  if (is_list()) {
    for (const Value& element : list()) out += (out.empty() ? "" : ", ") + element.repr();
    if (!tuple_) return "[" + out + "]";
    return "(" + out + (list().size() == 1 ? ",)" : ")");
  }
  if (is_map()) {
    for (const auto& [key, value] : map().entries)
      out += (out.empty() ? "" : ", ") + string_repr(key) + ": " + value.repr();
    return "{" + out + "}";
  }
  throw TemplateError{fmt::format("printing a {} is not supported", type_name()), 0, true};
}

std::string Value::json(int indent) const {
  std::string out;
  write_json(out, *this, indent, 0);
  return out;
}

bool Value::equals(const Value& other) const {
  if (is_number() && other.is_number()) {
    if (is_float() || other.is_float()) return number() == other.number();
    return integer() == other.integer();
  }
  if (held_.index() != other.held_.index()) return false;
  if (is_undefined() || is_none()) return true;
  if (is_string()) return string() == other.string();
  if (is_list()) {
    if (tuple_ != other.tuple_ || list().size() != other.list().size()) return false;
    for (std::size_t i = 0; i < list().size(); ++i)
      if (!list()[i].equals(other.list()[i])) return false;
    return true;
  }
  if (is_map()) {
    if (map().entries.size() != other.map().entries.size()) return false;
    for (const auto& [key, value] : map().entries) {
      const Value* match = other.map().find(key);
      if (!match || !value.equals(*match)) return false;
    }
    return true;
  }
  return name_space() == other.name_space() && loop() == other.loop() && macro() == other.macro();
}

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    const auto bytes = static_cast<std::size_t>(utf8_step(text).bytes);
    out.push_back(text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
  return out;
}

std::string_view strip_left(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (step.kind != Utf8Step::Kind::kCharacter || !is_space(step.code_point)) break;
    text.remove_prefix(std::size_t(step.bytes));
  }
  return text;
}

std::string_view strip_right(std::string_view text) {
  while (!text.empty()) {
    std::size_t at = text.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind != Utf8Step::Kind::kCharacter || !is_space(step.code_point)) break;
    text.remove_suffix(text.size() - at);
  }
  return text;
}

}  // namespace foretoken::jinja
