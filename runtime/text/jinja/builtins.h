// The filters, tests and methods that templates call, with jinja2's and Python's behaviour.
// What makes large values charges the rendering's budget first.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <vector>

#include "runtime/text/jinja/value.h"

namespace foretoken::jinja {

// What a rendering may still spend: one unit a step and one for every 16 bytes made or searched.
class Budget {
 public:
  explicit Budget(std::uint64_t units) : left_(units) {}
  void charge(std::uint64_t units) {
    if (units > left_) throw TemplateError{"the template does too much work", 0, false, true};
    left_ -= units;
  }
  void charge_bytes(std::uint64_t bytes) { charge(1 + bytes / 16); }
  void charge_elements(std::uint64_t n) { charge(1 + n * (sizeof(Value) / 16)); }

 private:
  std::uint64_t left_;
};

struct Arguments {
  std::vector<Value> positional;
  Entries named;

  // By position or name; null: not given.
  const Value* get(std::size_t position, std::string_view name) const;
  // Refuses what is not among the first `most` positions and these names.
  void allow(std::string_view function, std::size_t most,
             std::initializer_list<std::string_view> names) const;
};

bool is_filter(std::string_view name);
bool is_test(std::string_view name);
bool is_method(std::string_view name);

Value apply_filter(std::string_view name, const Value& value, const Arguments& arguments,
                   Budget& budget);
bool apply_test(std::string_view name, const Value& value, const Arguments& arguments,
                Budget& budget);
Value call_method(std::string_view name, const Value& object, const Arguments& arguments,
                  Budget& budget);

Value attribute_of(const Value& object, std::string_view name);        // object.name
Value item_of(const Value& object, const Value& key, Budget& budget);  // object[key]
Value slice_of(const Value& object, const Value& begin, const Value& end, const Value& step,
               Budget& budget);
bool contains(const Value& container, const Value& element,
              Budget& budget);  // element in container
// "<", "<=", ">", ">=" between numbers, strings or lists.
bool ordered(const Value& left, std::string_view op, const Value& right, Budget& budget);
// What `for` goes over: a list's elements, a map's keys, a string's characters.
Value elements_of(const Value& value, Budget& budget);

}  // namespace foretoken::jinja
