// Values of the template language, with Python's rules for truth, equality, text and JSON, because
// the published templates were written against Python's jinja2. Lists and maps are immutable, so
// values form no cycles; a namespace, the one thing a template can change, is owned by the renderer
// and held by pointer. One rendering, one thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace foretoken::jinja {

// What a template did wrong, or met: thrown inside jinja/, turned into an Error at ChatTemplate.
struct TemplateError {
  std::string message;
  int line = 0;  // 0: not known yet
  bool unsupported = false;
  bool limit = false;
};

class Value;
struct Macro;
struct Undefined {
  std::string name;
};
struct None {};
using List = std::vector<Value>;
using Entries = std::vector<std::pair<std::string, Value>>;  // in insertion order, keys unique
struct Map {
  Entries entries;
  const Value* find(std::string_view key) const;
};
struct Namespace {
  std::map<std::string, Value, std::less<>> values;
};
// A `for` in progress; lives while its body runs.
struct Loop {
  const List* items = nullptr;  // kept alive by the renderer
  std::int64_t index = 0;
};

class Value {
 public:
  Value() : held_(Undefined{}) {}
  Value(Undefined v) : held_(std::move(v)) {}
  Value(None v) : held_(v) {}
  Value(bool v) : held_(v) {}
  Value(std::int64_t v) : held_(v) {}
  Value(double v) : held_(v) {}
  Value(std::string v) : held_(std::make_shared<const std::string>(std::move(v))) {}
  Value(std::string_view v) : Value(std::string(v)) {}
  Value(const char* v) : Value(std::string(v)) {}
  Value(
      List v);  // throws when nested too deeply: these are printed, compared and freed recursively
  Value(Map v);
  static Value tuple(List v);  // a list in all but how it prints and what it equals
  Value(Namespace* v) : held_(v) {}
  Value(const Loop* v) : held_(v) {}
  Value(const Macro* v) : held_(v) {}

  bool is_undefined() const { return holds<Undefined>(); }
  bool is_none() const { return holds<None>(); }
  bool is_bool() const { return holds<bool>(); }
  bool is_int() const { return holds<std::int64_t>(); }
  bool is_float() const { return holds<double>(); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_string() const { return holds<StringPointer>(); }
  bool is_list() const { return holds<ListPointer>(); }
  bool is_map() const { return holds<MapPointer>(); }

  const std::string& undefined_name() const { return std::get<Undefined>(held_).name; }
  std::int64_t integer() const;  // of a bool or an int
  double number() const;         // of any number
  const std::string& string() const { return *std::get<StringPointer>(held_); }
  const List& list() const { return *std::get<ListPointer>(held_); }
  const Map& map() const { return *std::get<MapPointer>(held_); }
  Namespace* name_space() const { return get_or_null<Namespace*>(); }
  const Loop* loop() const { return get_or_null<const Loop*>(); }
  const Macro* macro() const { return get_or_null<const Macro*>(); }

  bool truth() const;
  const char* type_name() const;  // Python's
  std::string str() const;        // what {{ }} prints
  std::string repr() const;
  // json.dumps(ensure_ascii=False, indent=indent); indent -1: on one line.
  std::string json(int indent = -1) const;
  bool equals(const Value& other) const;

 private:
  using StringPointer = std::shared_ptr<const std::string>;
  using ListPointer = std::shared_ptr<const List>;
  using MapPointer = std::shared_ptr<const Map>;
  template <class T>
  bool holds() const {
    return std::holds_alternative<T>(held_);
  }
  template <class T>
  T get_or_null() const {
    const T* held = std::get_if<T>(&held_);
    return held ? *held : nullptr;
  }
  std::variant<Undefined, None, bool, std::int64_t, double, StringPointer, ListPointer, MapPointer,
               Namespace*, const Loop*, const Macro*>
      held_;
  bool tuple_ = false;
  int depth_ = 0;  // of a list or map: 1 + the largest of its elements
};

// Python's str.isspace().
bool is_space(char32_t c);
// The characters of well-formed UTF-8, each as its bytes.
std::vector<std::string_view> characters(std::string_view text);
std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);

}  // namespace foretoken::jinja
