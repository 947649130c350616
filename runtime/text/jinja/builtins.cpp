#include "runtime/text/jinja/builtins.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "runtime/unicode/unicode.h"

namespace foretoken::jinja {
namespace {

constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();

[[noreturn]] void fail(std::string message) { throw TemplateError{std::move(message)}; }

std::int64_t int_argument(const Value* value, std::int64_t otherwise) {
  if (!value || value->is_none()) return otherwise;
  if (!value->is_int() && !value->is_bool())
    fail(fmt::format("{} found, an integer wanted", value->type_name()));
  return value->integer();
}

std::string string_argument(const Value* value, std::string otherwise) {
  if (!value) return otherwise;
  if (!value->is_string()) fail(fmt::format("{} found, a string wanted", value->type_name()));
  return value->string();
}

std::size_t length_of(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) return characters(value.string()).size();
  if (value.is_list()) return value.list().size();
  if (value.is_map()) return value.map().entries.size();
  fail(fmt::format("object of type {} has no length", value.type_name()));
}

template <class Map>
std::string mapped(std::string_view text, Map map) {
  std::string out;
  out.reserve(text.size());
  std::size_t index = 0;
  for (const std::string_view character : characters(text))
    append_utf8(out, static_cast<char32_t>(map(
                         static_cast<utf8proc_int32_t>(utf8_step(character).code_point), index++)));
  return out;
}

// Case by Unicode's one-to-one mapping (and the one that templates could meet, sharp s).
std::string upper(std::string_view text) {
  std::string out;
  for (const std::string_view character : characters(text)) {
    const char32_t c = utf8_step(character).code_point;
    if (c == U'\u00df')
      out += "SS";
    else
      append_utf8(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
  }
  return out;
}
std::string lower(std::string_view text) {
  return mapped(text, [](utf8proc_int32_t c, std::size_t) { return utf8proc_tolower(c); });
}
std::string capitalize(std::string_view text) {
  return mapped(text, [](utf8proc_int32_t c, std::size_t i) {
    return i == 0 ? utf8proc_totitle(c) : utf8proc_tolower(c);
  });
}
bool cased_letter(utf8proc_int32_t c) {
  return utf8proc_tolower(c) != c || utf8proc_toupper(c) != c;
}
// Python's str.title(): a letter after none is a capital.
std::string method_title(std::string_view text) {
  bool inside = false;
  return mapped(text, [&](utf8proc_int32_t c, std::size_t) {
    const auto out = inside ? utf8proc_tolower(c) : utf8proc_totitle(c);
    inside = cased_letter(c);
    return out;
  });
}
// jinja2's filter: words begin after white space and - ( { [ <.
std::string filter_title(std::string_view text) {
  bool inside = false;
  return mapped(text, [&](utf8proc_int32_t c, std::size_t) {
    const bool border = is_space(static_cast<char32_t>(c)) || c == '-' || c == '(' || c == '{' ||
                        c == '[' || c == '<';
    const auto out = inside ? utf8proc_tolower(c) : utf8proc_toupper(c);
    inside = !border;
    return out;
  });
}

enum class Side { kLeft, kRight, kBoth };

std::string strip(std::string_view text, const Value* set, Side side) {
  if (!set || set->is_none()) {
    if (side != Side::kRight) text = strip_left(text);
    if (side != Side::kLeft) text = strip_right(text);
    return std::string(text);
  }
  const std::string held = string_argument(set, "");
  const auto all = characters(held);
  const auto among = [&](std::string_view c) {
    return std::find(all.begin(), all.end(), c) != all.end();
  };
  const auto parts = characters(text);
  std::size_t begin = 0, end = parts.size();
  if (side != Side::kRight)
    while (begin < end && among(parts[begin])) ++begin;
  if (side != Side::kLeft)
    while (end > begin && among(parts[end - 1])) --end;
  std::string out;
  for (std::size_t i = begin; i < end; ++i) out += parts[i];
  return out;
}

std::string replace(std::string_view text, std::string_view old, std::string_view with,
                    std::int64_t count, Budget& budget) {
  std::string out;
  if (count < 0) count = kAll;
  if (old.empty()) {  // between all characters, as Python does
    const auto parts = characters(text);
    budget.charge_bytes(text.size() + (parts.size() + 1) * with.size());
    for (const std::string_view c : parts) {
      if (count-- > 0) out += with;
      out += c;
    }
    if (count > 0) out += with;
    return out;
  }
  std::size_t at = 0;
  while (count-- > 0) {
    const std::size_t found = text.find(old, at);
    if (found == std::string_view::npos) break;
    budget.charge_bytes(found - at + with.size());
    out.append(text, at, found - at).append(with);
    at = found + old.size();
  }
  return out.append(text.substr(at));
}

List split_by(std::string_view text, std::string_view separator, std::int64_t most) {
  List out;
  std::size_t at = 0;
  while (static_cast<std::int64_t>(out.size()) < most) {
    const std::size_t found = text.find(separator, at);
    if (found == std::string_view::npos) break;
    out.emplace_back(text.substr(at, found - at));
    at = found + separator.size();
  }
  out.emplace_back(text.substr(at));
  return out;
}

List split_by_space(std::string_view text, std::int64_t most) {
  List out;
  for (text = strip_left(text); !text.empty(); text = strip_left(text)) {
    if (static_cast<std::int64_t>(out.size()) == most) {
      out.emplace_back(text);
      break;
    }
    std::size_t end = 0;
    while (end < text.size()) {
      const Utf8Step step = utf8_step(text.substr(end));
      if (is_space(step.code_point)) break;
      end += static_cast<std::size_t>(step.bytes);
    }
    out.emplace_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return out;
}

List split_right(std::string_view text, std::string_view separator, std::int64_t most) {
  List out;
  while (static_cast<std::int64_t>(out.size()) < most) {
    const std::size_t found = text.rfind(separator);
    if (found == std::string_view::npos) break;
    out.emplace_back(text.substr(found + separator.size()));
    text = text.substr(0, found);
  }
  out.emplace_back(text);
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> out;
  std::size_t begin = 0, at = 0;
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text.substr(at));
    const char32_t c = step.code_point;
    const std::size_t line_end = at;
    at += static_cast<std::size_t>(step.bytes);
    if (!((c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
          c == 0x2029))
      continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    out.push_back(text.substr(begin, (keep_ends ? at : line_end) - begin));
    begin = at;
  }
  if (begin < text.size()) out.push_back(text.substr(begin));
  return out;
}

std::string indent(std::string_view text, const std::string& margin, bool first, bool blank) {
  const std::string ended = std::string(text) + "\n";
  const auto lines = split_lines(ended, false);
  std::string out = first ? margin : "";
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += "\n" + (blank || !lines[i].empty() ? margin : "");
    out += lines[i];
  }
  return out;
}

Value pairs(const Value& map) {
  List out;
  for (const auto& [key, value] : map.map().entries)
    out.push_back(Value::tuple({Value(key), value}));
  return out;
}

Value joined(const Value& elements, const std::string& separator, bool strings_only,
             Budget& budget) {
  std::string out;
  bool first = true;
  for (const Value& element : elements.list()) {
    if (strings_only && !element.is_string())
      fail(fmt::format("join: {} found, a string wanted", element.type_name()));
    const std::string text = element.str();
    budget.charge_bytes(text.size() + separator.size());
    if (!first) out += separator;
    out += text;
    first = false;
  }
  return out;
}

Value to_int(const Value& value, std::int64_t otherwise) {
  if (value.is_int() || value.is_bool()) return value.integer();
  if (value.is_float())
    return std::isfinite(value.number()) && std::fabs(value.number()) < 9e18
               ? static_cast<std::int64_t>(value.number())
               : otherwise;
  if (!value.is_string()) return otherwise;
  std::string_view text = strip_left(strip_right(value.string()));
  if (text.starts_with('+')) text.remove_prefix(1);
  std::int64_t out = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error == std::errc{} && end == text.data() + text.size()) return out;
  double real = 0;
  const auto [real_end, real_error] = std::from_chars(text.data(), text.data() + text.size(), real);
  if (real_error == std::errc{} && real_end == text.data() + text.size() && std::fabs(real) < 9e18)
    return static_cast<std::int64_t>(real);
  return otherwise;
}

// a.b.0 as `map(attribute=...)` and `join(attribute=...)` write it.
Value path_of(const Value& object, std::string_view path, Budget& budget) {
  Value out = object;
  for (const Value& step : split_by(path, ".", kAll)) {
    const std::string& name = step.string();
    const bool index = !name.empty() && std::all_of(name.begin(), name.end(),
                                                    [](char c) { return c >= '0' && c <= '9'; });
    out = index && name.size() < 10
              ? item_of(out, Value(static_cast<std::int64_t>(std::stol(name))), budget)
              : attribute_of(out, name);
  }
  return out;
}

Arguments tail(const Arguments& arguments, std::size_t from) {
  Arguments out{{}, arguments.named};
  for (std::size_t i = from; i < arguments.positional.size(); ++i)
    out.positional.push_back(arguments.positional[i]);
  return out;
}

// select, reject, selectattr, rejectattr.
Value selected(std::string_view name, const Value& value, const Arguments& arguments,
               Budget& budget) {
  const bool by_attribute = name.ends_with("attr");
  const bool wanted = name.starts_with("select");
  std::size_t position = 0;
  std::string path;
  if (by_attribute) {
    if (arguments.positional.empty()) fail(fmt::format("{}: an attribute wanted", name));
    path = string_argument(&arguments.positional[position++], "");
  }
  std::string test;
  if (arguments.positional.size() > position) {
    test = string_argument(&arguments.positional[position++], "");
    if (!is_test(test)) throw TemplateError{fmt::format("test '{}': not supported", test), 0, true};
  }
  const Arguments rest = tail(arguments, position);
  List out;
  const Value elements = elements_of(value, budget);
  for (const Value& element : elements.list()) {
    const Value tested = by_attribute ? path_of(element, path, budget) : element;
    budget.charge(1);
    if ((test.empty() ? tested.truth() : apply_test(test, tested, rest, budget)) == wanted)
      out.push_back(element);
  }
  return out;
}

Value map_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Value elements = elements_of(value, budget);
  List out;
  if (const Value* attribute = arguments.get(99, "attribute")) {
    arguments.allow("map", 0, {"attribute", "default"});
    const Value* otherwise = arguments.get(99, "default");
    for (const Value& element : elements.list()) {
      Value found = path_of(element, string_argument(attribute, ""), budget);
      out.push_back(found.is_undefined() && otherwise ? *otherwise : std::move(found));
    }
    return out;
  }
  if (arguments.positional.empty()) fail("map: a filter or attribute wanted");
  const std::string name = string_argument(&arguments.positional[0], "");
  if (!is_filter(name) || name == "map")
    throw TemplateError{fmt::format("filter '{}': not supported in map", name), 0, true};
  const Arguments rest = tail(arguments, 1);
  for (const Value& element : elements.list())
    out.push_back(apply_filter(name, element, rest, budget));
  return out;
}

using Filter = Value (*)(const Value&, const Arguments&, Budget&);

const std::unordered_map<std::string_view, Filter>& filters() {
  static const std::unordered_map<std::string_view, Filter> table = {
      {"trim",
       [](const Value& v, const Arguments& a, Budget&) -> Value {
         a.allow("trim", 1, {"chars"});
         return strip(v.str(), a.get(0, "chars"), Side::kBoth);
       }},
      {"length",
       [](const Value& v, const Arguments& a, Budget&) -> Value {
         a.allow("length", 0, {});
         return static_cast<std::int64_t>(length_of(v));
       }},
      {"tojson",
       [](const Value& v, const Arguments& a, Budget& b) -> Value {
         a.allow("tojson", 1, {"indent", "ensure_ascii"});
         if (const Value* ascii = a.get(99, "ensure_ascii"); ascii && ascii->truth())
           throw TemplateError{"tojson(ensure_ascii=true): not supported", 0, true};
         const Value* given = a.get(0, "indent");
         const std::int64_t margin = int_argument(given, -1);
         if (margin > 16) fail("tojson: an indent of at most 16 wanted");
         std::string out = v.json(
             given && !given->is_none() ? static_cast<int>(std::max<std::int64_t>(margin, 0)) : -1);
         b.charge_bytes(out.size());
         return out;
       }},
      {"upper", [](const Value& v, const Arguments&, Budget&) -> Value { return upper(v.str()); }},
      {"lower", [](const Value& v, const Arguments&, Budget&) -> Value { return lower(v.str()); }},
      {"capitalize",
       [](const Value& v, const Arguments&, Budget&) -> Value { return capitalize(v.str()); }},
      {"title",
       [](const Value& v, const Arguments&, Budget&) -> Value { return filter_title(v.str()); }},
      {"join",
       [](const Value& v, const Arguments& a, Budget& b) -> Value {
         a.allow("join", 2, {"d", "attribute"});
         const Value* separator = a.get(0, "d");
         const Value* attribute = a.get(1, "attribute");
         Value elements = elements_of(v, b);
         if (attribute && !attribute->is_none()) {
           List found;
           for (const Value& element : elements.list())
             found.push_back(path_of(element, string_argument(attribute, ""), b));
           elements = std::move(found);
         }
         return joined(elements, separator ? separator->str() : "", false, b);
       }},
      {"default",
       [](const Value& v, const Arguments& a, Budget&) -> Value {
         a.allow("default", 2, {"default_value", "boolean"});
         const Value* boolean = a.get(1, "boolean");
         if (!v.is_undefined() && !(boolean && boolean->truth() && !v.truth())) return v;
         const Value* otherwise = a.get(0, "default_value");
         return otherwise ? *otherwise : Value("");
       }},
      {"first",
       [](const Value& v, const Arguments& a, Budget& b) -> Value {
         a.allow("first", 0, {});
         const Value elements = elements_of(v, b);
         return elements.list().empty() ? Value(Undefined{"the first of nothing"})
                                        : elements.list().front();
       }},
      {"last",
       [](const Value& v, const Arguments& a, Budget& b) -> Value {
         a.allow("last", 0, {});
         const Value elements = elements_of(v, b);
         return elements.list().empty() ? Value(Undefined{"the last of nothing"})
                                        : elements.list().back();
       }},
      {"list",
       [](const Value& v, const Arguments&, Budget& b) -> Value { return elements_of(v, b); }},
      {"items",
       [](const Value& v, const Arguments& a, Budget& b) -> Value {
         a.allow("items", 0, {});
         if (v.is_undefined()) return List{};
         if (!v.is_map()) fail("items: a mapping wanted");
         b.charge_elements(3 * v.map().entries.size());
         return pairs(v);
       }},
      {"replace",
       [](const Value& v, const Arguments& a, Budget& b) -> Value {
         a.allow("replace", 3, {"old", "new", "count"});
         const Value *old = a.get(0, "old"), *with = a.get(1, "new");
         if (!old || !with) fail("replace: what to replace and by what wanted");
         return replace(v.str(), old->str(), with->str(), int_argument(a.get(2, "count"), -1), b);
       }},
      {"string", [](const Value& v, const Arguments&, Budget&) -> Value { return v.str(); }},
      {"safe", [](const Value& v, const Arguments&, Budget&) -> Value { return v; }},
      {"int",
       [](const Value& v, const Arguments& a, Budget&) -> Value {
         a.allow("int", 1, {"default"});
         return to_int(v, int_argument(a.get(0, "default"), 0));
       }},
      {"abs",
       [](const Value& v, const Arguments& a, Budget&) -> Value {
         a.allow("abs", 0, {});
         if (!v.is_number()) fail(fmt::format("abs: {} found, a number wanted", v.type_name()));
         if (v.is_float()) return std::fabs(v.number());
         if (v.integer() == std::numeric_limits<std::int64_t>::min()) fail("abs: over 64 bits");
         return std::abs(v.integer());
       }},
      {"reverse",
       [](const Value& v, const Arguments& a, Budget& b) -> Value {
         a.allow("reverse", 0, {});
         List out = elements_of(v, b).list();
         std::reverse(out.begin(), out.end());
         return v.is_string() ? joined(out, "", true, b) : Value(std::move(out));
       }},
      {"indent",
       [](const Value& v, const Arguments& a, Budget& b) -> Value {
         a.allow("indent", 3, {"width", "first", "blank"});
         const Value* width = a.get(0, "width");
         const std::int64_t n = width && width->is_string() ? 0 : int_argument(width, 4);
         if (n < 0 || n > 256) fail("indent: a width of 0 to 256 wanted");
         const std::string margin =
             width && width->is_string() ? width->string() : std::string(std::size_t(n), ' ');
         const Value *first = a.get(1, "first"), *blank = a.get(2, "blank");
         const std::string text = v.str();
         b.charge_bytes(text.size() * (1 + margin.size()));
         return indent(text, margin, first && first->truth(), blank && blank->truth());
       }},
      {"map", map_filter},
      {"select",
       [](const Value& v, const Arguments& a, Budget& b) { return selected("select", v, a, b); }},
      {"reject",
       [](const Value& v, const Arguments& a, Budget& b) { return selected("reject", v, a, b); }},
      {"selectattr", [](const Value& v, const Arguments& a,
                        Budget& b) { return selected("selectattr", v, a, b); }},
      {"rejectattr", [](const Value& v, const Arguments& a,
                        Budget& b) { return selected("rejectattr", v, a, b); }},
  };
  return table;
}

std::string_view filter_name(std::string_view name) {
  if (name == "count") return "length";
  if (name == "d") return "default";
  return name;
}

const Value& operand(std::string_view test, const Arguments& arguments) {
  if (arguments.positional.size() != 1 || !arguments.named.empty())
    fail(fmt::format("test '{}': one argument wanted", test));
  return arguments.positional[0];
}

using Test = bool (*)(const Value&, const Arguments&, Budget&);

template <auto Property>
bool simple(const Value& value, const Arguments& arguments, Budget&) {
  arguments.allow("a test", 0, {});
  return Property(value);
}

std::int64_t remainder_by(const Value& value, std::int64_t divisor) {
  if (!value.is_int() && !value.is_bool())
    fail(fmt::format("{} found, an integer wanted", value.type_name()));
  if (divisor == 0) fail("division by zero");
  return divisor == -1 ? 0 : value.integer() % divisor;
}

const std::unordered_map<std::string_view, Test>& tests() {
  static const std::unordered_map<std::string_view, Test> table = {
      {"defined", simple<[](const Value& v) { return !v.is_undefined(); }>},
      {"undefined", simple<[](const Value& v) { return v.is_undefined(); }>},
      {"none", simple<[](const Value& v) { return v.is_none(); }>},
      {"string", simple<[](const Value& v) { return v.is_string(); }>},
      {"mapping", simple<[](const Value& v) { return v.is_map(); }>},
      {"iterable", simple<[](const Value& v) {
         return v.is_string() || v.is_list() || v.is_map() || v.is_undefined() || v.loop();
       }>},
      {"sequence", simple<[](const Value& v) {
         return v.is_string() || v.is_list() || v.is_map() || v.is_undefined();
       }>},
      {"number", simple<[](const Value& v) { return v.is_number(); }>},
      {"integer", simple<[](const Value& v) { return v.is_int(); }>},
      {"float", simple<[](const Value& v) { return v.is_float(); }>},
      {"boolean", simple<[](const Value& v) { return v.is_bool(); }>},
      {"true", simple<[](const Value& v) { return v.is_bool() && v.integer() == 1; }>},
      {"false", simple<[](const Value& v) { return v.is_bool() && v.integer() == 0; }>},
      {"odd", simple<[](const Value& v) { return remainder_by(v, 2) != 0; }>},
      {"even", simple<[](const Value& v) { return remainder_by(v, 2) == 0; }>},
      {"divisibleby",
       [](const Value& v, const Arguments& a, Budget&) {
         return remainder_by(v, int_argument(&operand("divisibleby", a), 0)) == 0;
       }},
      {"equalto",
       [](const Value& v, const Arguments& a, Budget&) { return v.equals(operand("equalto", a)); }},
      {"eq",
       [](const Value& v, const Arguments& a, Budget&) { return v.equals(operand("eq", a)); }},
      {"ne",
       [](const Value& v, const Arguments& a, Budget&) { return !v.equals(operand("ne", a)); }},
      {"lt", [](const Value& v, const Arguments& a,
                Budget& b) { return ordered(v, "<", operand("lt", a), b); }},
      {"gt", [](const Value& v, const Arguments& a,
                Budget& b) { return ordered(v, ">", operand("gt", a), b); }},
      {"le", [](const Value& v, const Arguments& a,
                Budget& b) { return ordered(v, "<=", operand("le", a), b); }},
      {"ge", [](const Value& v, const Arguments& a,
                Budget& b) { return ordered(v, ">=", operand("ge", a), b); }},
      {"in", [](const Value& v, const Arguments& a,
                Budget& b) { return contains(operand("in", a), v, b); }},
  };
  return table;
}

constexpr std::string_view kStringMethods[] = {
    "strip",    "lstrip",  "rstrip", "split",        "rsplit",      "splitlines", "startswith",
    "endswith", "replace", "upper",  "lower",        "capitalize",  "title",      "find",
    "rfind",    "count",   "join",   "removeprefix", "removesuffix"};
constexpr std::string_view kOtherMethods[] = {"items", "keys", "values", "get", "cycle"};

// startswith and endswith take one string or several.
bool matches_any(const Value* affixes, const auto& matches) {
  if (!affixes) fail("a string wanted");
  if (!affixes->is_list()) return matches(string_argument(affixes, ""));
  return std::any_of(affixes->list().begin(), affixes->list().end(),
                     [&](const Value& affix) { return matches(string_argument(&affix, "")); });
}

Value string_method(std::string_view name, const std::string& text, const Arguments& a,
                    Budget& budget) {
  budget.charge_bytes(text.size());
  const Value* first = a.get(0, "");
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    a.allow(name, 1, {});
    return strip(text, first,
                 name == "strip"    ? Side::kBoth
                 : name == "lstrip" ? Side::kLeft
                                    : Side::kRight);
  }
  if (name == "split" || name == "rsplit") {
    a.allow(name, 2, {"sep", "maxsplit"});
    const Value* separator = a.get(0, "sep");
    std::int64_t most = int_argument(a.get(1, "maxsplit"), -1);
    if (most < 0) most = kAll;
    List out;
    if (!separator || separator->is_none()) {
      if (name == "rsplit" && most != kAll)
        throw TemplateError{"rsplit by white space with a limit: not supported", 0, true};
      out = split_by_space(text, most);
    } else {
      const std::string by = string_argument(separator, "");
      if (by.empty()) fail("split: an empty separator");
      out = name == "split" ? split_by(text, by, most) : split_right(text, by, most);
    }
    budget.charge_elements(out.size());
    return out;
  }
  if (name == "splitlines") {
    a.allow(name, 1, {"keepends"});
    const Value* keep = a.get(0, "keepends");
    List out;
    for (const std::string_view line : split_lines(text, keep && keep->truth()))
      out.emplace_back(line);
    budget.charge_elements(out.size());
    return out;
  }
  if (name == "upper" || name == "lower" || name == "capitalize" || name == "title") {
    a.allow(name, 0, {});
    return name == "upper"   ? upper(text)
           : name == "lower" ? lower(text)
           : name == "title" ? method_title(text)
                             : capitalize(text);
  }
  if (name == "replace") {
    a.allow(name, 3, {});
    if (a.positional.size() < 2) fail("replace: what to replace and by what wanted");
    return replace(text, string_argument(first, ""), string_argument(&a.positional[1], ""),
                   int_argument(a.get(2, ""), -1), budget);
  }
  a.allow(name, 1, {});
  if (name == "startswith")
    return matches_any(first, [&](const std::string& affix) { return text.starts_with(affix); });
  if (name == "endswith")
    return matches_any(first, [&](const std::string& affix) { return text.ends_with(affix); });
  if (!first) fail(fmt::format("{}: an argument wanted", name));
  if (name == "join") return joined(elements_of(*first, budget), text, true, budget);
  const std::string argument = string_argument(first, "");
  if (name == "removeprefix")
    return text.starts_with(argument) ? text.substr(argument.size()) : text;
  if (name == "removesuffix")
    return text.ends_with(argument) ? text.substr(0, text.size() - argument.size()) : text;
  if (name == "find" || name == "rfind") {
    const std::size_t at = name == "find" ? text.find(argument) : text.rfind(argument);
    if (at == std::string::npos) return std::int64_t{-1};
    return static_cast<std::int64_t>(characters(std::string_view(text).substr(0, at)).size());
  }
  // count
  if (argument.empty()) return static_cast<std::int64_t>(characters(text).size() + 1);
  std::int64_t n = 0;
  for (std::size_t at = text.find(argument); at != std::string::npos;
       at = text.find(argument, at + argument.size()))
    ++n;
  return n;
}

Value map_method(std::string_view name, const Value& object, const Arguments& a, Budget& budget) {
  const Entries& entries = object.map().entries;
  if (name == "get") {
    a.allow(name, 2, {});
    if (a.positional.empty()) fail("get: a key wanted");
    const Value* found =
        a.positional[0].is_string() ? object.map().find(a.positional[0].string()) : nullptr;
    return found ? *found : a.positional.size() > 1 ? a.positional[1] : Value(None{});
  }
  a.allow(name, 0, {});
  budget.charge_elements(3 * entries.size());
  if (name == "items") return pairs(object);
  List out;
  for (const auto& [key, value] : entries) out.push_back(name == "keys" ? Value(key) : value);
  return out;
}

Value loop_attribute(const Loop& loop, std::string_view name) {
  const auto n = static_cast<std::int64_t>(loop.items->size());
  if (name == "index") return loop.index + 1;
  if (name == "index0") return loop.index;
  if (name == "first") return loop.index == 0;
  if (name == "last") return loop.index + 1 == n;
  if (name == "length") return n;
  if (name == "revindex") return n - loop.index;
  if (name == "revindex0") return n - loop.index - 1;
  if (name == "depth") return std::int64_t{1};  // jinja2 counts recursive loops only
  if (name == "depth0") return std::int64_t{0};
  const auto at = static_cast<std::size_t>(loop.index);
  if (name == "previtem")
    return loop.index > 0 ? (*loop.items)[at - 1] : Value(Undefined{"there is no previous item"});
  if (name == "nextitem")
    return loop.index + 1 < n ? (*loop.items)[at + 1] : Value(Undefined{"there is no next item"});
  throw TemplateError{fmt::format("loop.{}: not supported", name), 0, true};
}

}  // namespace

const Value* Arguments::get(std::size_t position, std::string_view name) const {
  if (position < positional.size()) return &positional[position];
  for (const auto& [given, value] : named)
    if (given == name) return &value;
  return nullptr;
}

void Arguments::allow(std::string_view function, std::size_t most,
                      std::initializer_list<std::string_view> names) const {
  if (positional.size() > most)
    fail(fmt::format("{}: {} arguments found, at most {} wanted", function, positional.size(),
                     most));
  for (const auto& [name, value] : named)
    if (std::find(names.begin(), names.end(), name) == names.end())
      fail(fmt::format("{}: unexpected argument '{}'", function, name));
}

bool is_filter(std::string_view name) { return filters().contains(filter_name(name)); }
bool is_test(std::string_view name) { return tests().contains(name); }
bool is_method(std::string_view name) {
  return std::find(std::begin(kStringMethods), std::end(kStringMethods), name) !=
             std::end(kStringMethods) ||
         std::find(std::begin(kOtherMethods), std::end(kOtherMethods), name) !=
             std::end(kOtherMethods);
}

Value apply_filter(std::string_view name, const Value& value, const Arguments& arguments,
                   Budget& budget) {
  budget.charge_bytes(value.is_string() ? value.string().size() : 0);
  Value out = filters().at(filter_name(name))(value, arguments, budget);
  budget.charge_bytes(out.is_string() ? out.string().size() : 0);
  return out;
}

bool apply_test(std::string_view name, const Value& value, const Arguments& arguments,
                Budget& budget) {
  return tests().at(name)(value, arguments, budget);
}

Value call_method(std::string_view name, const Value& object, const Arguments& arguments,
                  Budget& budget) {
  if (object.is_undefined()) fail(fmt::format("'{}' is undefined", object.undefined_name()));
  const bool of_strings = std::find(std::begin(kStringMethods), std::end(kStringMethods), name) !=
                          std::end(kStringMethods);
  if (object.is_string() && of_strings)
    return string_method(name, object.string(), arguments, budget);
  if (object.is_map() && !of_strings && name != "cycle")
    return map_method(name, object, arguments, budget);
  if (object.loop() && name == "cycle") {
    if (arguments.positional.empty()) fail("cycle: values wanted");
    return arguments
        .positional[static_cast<std::size_t>(object.loop()->index) % arguments.positional.size()];
  }
  fail(fmt::format("'{}' object has no method '{}'", object.type_name(), name));
}

Value attribute_of(const Value& object, std::string_view name) {
  if (object.is_undefined()) fail(fmt::format("'{}' is undefined", object.undefined_name()));
  const Value* found = nullptr;
  if (object.is_map()) found = object.map().find(name);
  if (const Namespace* space = object.name_space()) {
    const auto it = space->values.find(name);
    if (it != space->values.end()) found = &it->second;
  }
  if (object.loop()) return loop_attribute(*object.loop(), name);
  return found ? *found
               : Value(Undefined{fmt::format("{} object has no attribute {}", object.type_name(),
                                             name.substr(0, 64))});
}

Value item_of(const Value& object, const Value& key, Budget& budget) {
  if (key.is_string()) return attribute_of(object, key.string());
  if (object.is_undefined()) fail(fmt::format("'{}' is undefined", object.undefined_name()));
  if ((object.is_list() || object.is_string()) && (key.is_int() || key.is_bool())) {
    const Value elements = elements_of(object, budget);
    const auto n = static_cast<std::int64_t>(elements.list().size());
    const std::int64_t at = key.integer() < 0 ? key.integer() + n : key.integer();
    if (at >= 0 && at < n) return elements.list()[static_cast<std::size_t>(at)];
  }
  return Undefined{fmt::format("{} object has no such element", object.type_name())};
}

Value slice_of(const Value& object, const Value& begin, const Value& end, const Value& step,
               Budget& budget) {
  if (object.is_undefined()) fail(fmt::format("'{}' is undefined", object.undefined_name()));
  if (!object.is_list() && !object.is_string())
    fail(fmt::format("'{}' object cannot be sliced", object.type_name()));
  const Value elements = elements_of(object, budget);
  const auto n = static_cast<std::int64_t>(elements.list().size());
  const std::int64_t by = int_argument(&step, 1);
  if (by == 0) fail("slice step cannot be zero");
  // Python's rules: negative indices count from the end, all are clamped.
  const auto clamped = [&](const Value& v, std::int64_t otherwise) {
    if (v.is_none()) return otherwise;
    std::int64_t at = int_argument(&v, 0);
    if (at < 0) at = at < -n ? -1 : at + n;
    if (by > 0) return std::clamp<std::int64_t>(at, 0, n);
    return std::clamp<std::int64_t>(at, -1, n - 1);
  };
  const std::int64_t from = clamped(begin, by > 0 ? 0 : n - 1);
  const std::int64_t to = clamped(end, by > 0 ? n : -1);
  List out;
  for (std::int64_t at = from; by > 0 ? at < to : at > to;) {
    out.push_back(elements.list()[static_cast<std::size_t>(at)]);
    if (__builtin_add_overflow(at, by, &at)) break;
  }
  budget.charge_elements(out.size());
  return object.is_string() ? joined(out, "", true, budget) : Value(std::move(out));
}

bool contains(const Value& container, const Value& element, Budget& budget) {
  if (container.is_undefined()) return false;
  if (container.is_string()) {
    if (!element.is_string())
      fail(fmt::format("'in <string>': {} found, a string wanted", element.type_name()));
    budget.charge_bytes(container.string().size());
    return container.string().find(element.string()) != std::string::npos;
  }
  if (container.is_map()) return element.is_string() && container.map().find(element.string());
  if (!container.is_list())
    fail(fmt::format("argument of type '{}' is not iterable", container.type_name()));
  budget.charge_elements(container.list().size());
  return std::any_of(container.list().begin(), container.list().end(),
                     [&](const Value& v) { return v.equals(element); });
}

bool ordered(const Value& left, std::string_view op, const Value& right, Budget& budget) {
  const auto decide = [&](const auto& a, const auto& b) {
    if (op == "<") return a < b;
    if (op == "<=") return a <= b;
    if (op == ">") return a > b;
    return a >= b;
  };
  if (left.is_string() && right.is_string()) return decide(left.string(), right.string());
  if (left.is_number() && right.is_number()) {
    if (left.is_float() || right.is_float()) return decide(left.number(), right.number());
    return decide(left.integer(), right.integer());
  }
  if (left.is_list() && right.is_list()) {
    for (std::size_t i = 0; i < std::min(left.list().size(), right.list().size()); ++i) {
      budget.charge(1);
      if (!left.list()[i].equals(right.list()[i]))
        return ordered(left.list()[i], op, right.list()[i], budget);
    }
    return decide(left.list().size(), right.list().size());
  }
  for (const Value* v : {&left, &right})
    if (v->is_undefined()) fail(fmt::format("'{}' is undefined", v->undefined_name()));
  fail(fmt::format("'{}' not supported between '{}' and '{}'", op, left.type_name(),
                   right.type_name()));
}

Value elements_of(const Value& value, Budget& budget) {
  if (value.is_list()) return value;
  List out;
  if (value.is_map()) {
    budget.charge_elements(value.map().entries.size());
    for (const auto& [key, held] : value.map().entries) out.emplace_back(key);
  } else if (value.is_string()) {
    budget.charge_elements(value.string().size());
    for (const std::string_view c : characters(value.string())) out.emplace_back(c);
  } else if (!value.is_undefined()) {
    fail(fmt::format("'{}' object is not iterable", value.type_name()));
  }
  return out;
}

}  // namespace foretoken::jinja
