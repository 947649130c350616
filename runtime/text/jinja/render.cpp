#include "runtime/text/jinja/render.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <utility>

#include "runtime/text/jinja/builtins.h"

namespace foretoken::jinja {
namespace {

// Of expressions and statements in progress, macros included: bounds the stack (under 1 KiB each).
constexpr int kMaxRenderDepth = 1000;
constexpr std::int64_t kMaxRange = 100'000;  // as jinja2's sandbox

using Kind = Expression::Kind;
using Scope = std::vector<std::pair<std::string, Value>>;

Value* find(Scope& scope, std::string_view name) {
  for (auto& [held, value] : scope)
    if (held == name) return &value;
  return nullptr;
}

class Renderer {
 public:
  Renderer(const Entries& context, std::uint64_t budget) : budget_(budget) {
    scopes_.push_back(context);
    scopes_.emplace_back();
  }

  std::string run(const Body& body) {
    std::string out;
    execute(body, out);
    return out;
  }

 private:
  enum class Flow { kNext, kBreak, kContinue };

  class Deeper {
   public:
    explicit Deeper(Renderer& renderer) : renderer_(renderer) {
      if (++renderer_.depth_ > kMaxRenderDepth)
        throw TemplateError{"nested too deeply", 0, false, true};
    }
    ~Deeper() { --renderer_.depth_; }

   private:
    Renderer& renderer_;
  };

  // --- names

  // A macro sees its own names and the template's outermost ones.
  Value lookup(std::string_view name) {
    for (std::size_t i = scopes_.size(); i > base_; --i)
      if (const Value* value = find(scopes_[i - 1], name)) return *value;
    for (std::size_t i = std::min<std::size_t>(base_, 2); i > 0; --i)
      if (const Value* value = find(scopes_[i - 1], name)) return *value;
    return Undefined{std::string(name.substr(0, 64))};
  }

  void assign(std::string_view name, Value value) {
    if (Value* held = find(scopes_.back(), name))
      *held = std::move(value);
    else
      scopes_.back().emplace_back(name, std::move(value));
  }

  void assign(const Target& target, const Value& value) {
    if (!target.attribute.empty()) {
      const Value space = lookup(target.names[0]);
      if (!space.name_space())
        throw TemplateError{fmt::format("'{}' is not a namespace", target.names[0])};
      space.name_space()->values.insert_or_assign(target.attribute, value);
      return;
    }
    if (!target.unpack) return assign(target.names[0], value);
    const Value elements = elements_of(value, budget_);
    if (elements.list().size() != target.names.size())
      throw TemplateError{
          fmt::format("{} values found, {} wanted", elements.list().size(), target.names.size())};
    for (std::size_t i = 0; i < target.names.size(); ++i)
      assign(target.names[i], elements.list()[i]);
  }

  // The innermost line that is known goes into the error.
  template <class Run>
  auto at_line(int line, Run run) {
    try {
      return run();
    } catch (TemplateError& error) {
      if (error.line == 0) error.line = line;
      throw;
    }
  }

  // --- statements

  Flow execute(const Body& body, std::string& out) {
    for (const Statement& statement : body) {
      const Flow flow = at_line(statement.line, [&] { return execute(statement, out); });
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  void emit(std::string_view text, std::string& out) {
    budget_.charge_bytes(text.size());
    out += text;
  }

  Flow execute(const Statement& statement, std::string& out) {
    const Deeper deeper(*this);
    budget_.charge(1);
    switch (statement.kind) {
      case Statement::Kind::kText:
        emit(statement.text, out);
        break;
      case Statement::Kind::kPrint:
        emit(evaluate(*statement.value).str(), out);
        break;
      case Statement::Kind::kIf:
        for (const Branch& branch : statement.branches)
          if (evaluate(*branch.test).truth()) return execute(branch.body, out);
        return execute(statement.otherwise, out);
      case Statement::Kind::kFor:
        return loop(statement, out);
      case Statement::Kind::kSet:
        assign(statement.target, evaluate(*statement.value));
        break;
      case Statement::Kind::kSetBlock: {
        std::string text;
        scopes_.emplace_back();
        const Flow flow = execute(statement.body, text);
        scopes_.pop_back();
        if (flow != Flow::kNext) return flow;
        assign(statement.target, Value(std::move(text)));
        break;
      }
      case Statement::Kind::kMacro:
        assign(statement.macro->name, Value(statement.macro.get()));
        break;
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  Flow loop(const Statement& statement, std::string& out) {
    Value items = elements_of(evaluate(*statement.value), budget_);
    if (statement.filter) {
      List kept;
      for (const Value& item : items.list()) {
        scopes_.emplace_back();
        assign(statement.target, item);
        if (evaluate(*statement.filter).truth()) kept.push_back(item);
        scopes_.pop_back();
      }
      items = std::move(kept);
    }
    if (items.list().empty()) return execute(statement.otherwise, out);
    // A template may keep `loop` in a namespace, so loops live as long as the rendering.
    kept_.push_back(items);
    loops_.push_back({&kept_.back().list(), 0});
    Loop& loop = loops_.back();
    for (const Value& item : items.list()) {
      budget_.charge(1);
      scopes_.emplace_back();
      assign("loop", Value(static_cast<const Loop*>(&loop)));
      assign(statement.target, item);
      const Flow flow = execute(statement.body, out);
      scopes_.pop_back();
      if (flow == Flow::kBreak) break;
      if (loop.index + 1 < static_cast<std::int64_t>(loop.items->size())) ++loop.index;
    }
    return Flow::kNext;
  }

  // --- expressions

  Value evaluate(const Expression& e) {
    const Deeper deeper(*this);
    budget_.charge(1);
    return at_line(e.line, [&] { return evaluate_kind(e); });
  }

  Value evaluate_or_none(const ExpressionPointer& e) { return e ? evaluate(*e) : Value(None{}); }

  Value evaluate_kind(const Expression& e) {
    const auto operand = [&](std::size_t i) { return evaluate(*e.operands[i]); };
    switch (e.kind) {
      case Kind::kConstant:
        return e.constant;
      case Kind::kName:
        return lookup(e.text);
      case Kind::kList:
      case Kind::kTuple: {
        List out;
        budget_.charge_elements(e.operands.size());
        for (std::size_t i = 0; i < e.operands.size(); ++i) out.push_back(operand(i));
        return e.kind == Kind::kTuple ? Value::tuple(std::move(out)) : Value(std::move(out));
      }
      case Kind::kMap:
        return map(e);
      case Kind::kNegate:
      case Kind::kPlus:
        return signed_number(operand(0), e.kind == Kind::kNegate);
      case Kind::kNot:
        return !operand(0).truth();
      case Kind::kBinary:
        return binary(operand(0), e.text, operand(1));
      case Kind::kConcat: {
        std::string out;
        for (std::size_t i = 0; i < e.operands.size(); ++i) emit(operand(i).str(), out);
        return out;
      }
      case Kind::kAnd: {
        Value left = operand(0);
        return left.truth() ? operand(1) : left;
      }
      case Kind::kOr: {
        Value left = operand(0);
        return left.truth() ? left : operand(1);
      }
      case Kind::kCompare:
        return compare(e);
      case Kind::kCondition:
        if (operand(1).truth()) return operand(0);
        return e.operands[2] ? operand(2) : Value(Undefined{"a condition without else"});
      case Kind::kAttribute:
        return attribute_of(operand(0), e.text);
      case Kind::kItem: {
        const Value object = operand(0);
        return item_of(object, operand(1), budget_);
      }
      case Kind::kSlice: {
        const Value object = operand(0);
        const Value begin = evaluate_or_none(e.operands[1]), end = evaluate_or_none(e.operands[2]);
        return slice_of(object, begin, end, evaluate_or_none(e.operands[3]), budget_);
      }
      case Kind::kCall:
        return call(e);
      case Kind::kMethod: {
        const Value object = operand(0);
        return call_method(e.text, object, arguments(e), budget_);
      }
      case Kind::kFilter: {
        const Value value = operand(0);
        return apply_filter(e.text, value, arguments(e), budget_);
      }
      case Kind::kTest: {
        const Value value = operand(0);
        return apply_test(e.text, value, arguments(e), budget_);
      }
    }
    return {};
  }

  Arguments arguments(const Expression& e) {
    Arguments out;
    for (const Argument& argument : e.arguments) {
      Value value = evaluate(*argument.value);
      if (argument.name.empty())
        out.positional.push_back(std::move(value));
      else
        out.named.emplace_back(argument.name, std::move(value));
    }
    return out;
  }

  Value map(const Expression& e) {
    Map out;
    budget_.charge_elements(e.operands.size());
    for (std::size_t i = 0; i < e.operands.size(); i += 2) {
      const Value key = evaluate(*e.operands[i]);
      if (!key.is_string())
        throw TemplateError{fmt::format("a key of type {}: not supported", key.type_name()), 0,
                            true};
      Value value = evaluate(*e.operands[i + 1]);
      if (const Value* held = out.find(key.string()))
        *const_cast<Value*>(held) = std::move(value);
      else
        out.entries.emplace_back(key.string(), std::move(value));
    }
    return out;
  }

  Value signed_number(const Value& value, bool negate) {
    if (value.is_undefined())
      throw TemplateError{fmt::format("'{}' is undefined", value.undefined_name())};
    if (!value.is_number())
      throw TemplateError{fmt::format("{} found, a number wanted", value.type_name())};
    if (value.is_float()) return negate ? -value.number() : value.number();
    std::int64_t out = 0;
    if (__builtin_sub_overflow(std::int64_t{0}, value.integer(), &out))
      throw TemplateError{"a number over 64 bits"};
    return negate ? out : value.integer();
  }

  bool compare(const Expression& e) {
    Value left = evaluate(*e.operands[0]);
    for (std::size_t i = 0; i < e.operators.size(); ++i) {
      Value right = evaluate(*e.operands[i + 1]);
      const std::string& op = e.operators[i];
      const auto decide = [&] {
        if (op == "==" || op == "!=") {
          budget_.charge_bytes(left.is_string() ? left.string().size() : 16);
          return left.equals(right) == (op == "==");
        }
        if (op == "in" || op == "not in") return contains(right, left, budget_) == (op == "in");
        return ordered(left, op, right, budget_);
      };
      if (!decide()) return false;
      left = std::move(right);
    }
    return true;
  }

  Value binary(const Value& left, const std::string& op, const Value& right) {
    for (const Value* v : {&left, &right})
      if (v->is_undefined())
        throw TemplateError{fmt::format("'{}' is undefined", v->undefined_name())};
    if (left.is_number() && right.is_number()) return arithmetic(left, op, right);
    if (op == "+" && left.is_string() && right.is_string()) {
      budget_.charge_bytes(left.string().size() + right.string().size());
      return left.string() + right.string();
    }
    if (op == "+" && left.is_list() && right.is_list()) {
      budget_.charge_elements(left.list().size() + right.list().size());
      List out = left.list();
      out.insert(out.end(), right.list().begin(), right.list().end());
      return out;
    }
    if (op == "*" && left.is_string() && (right.is_int() || right.is_bool()))
      return repeat(left.string(), right.integer());
    if (op == "*" && right.is_string() && (left.is_int() || left.is_bool()))
      return repeat(right.string(), left.integer());
    if (op == "%" && left.is_string())
      throw TemplateError{"formatting a string with '%': not supported", 0, true};
    throw TemplateError{fmt::format("'{}' not supported between '{}' and '{}'", op,
                                    left.type_name(), right.type_name())};
  }

  Value repeat(const std::string& text, std::int64_t n) {
    if (n <= 0 || text.empty()) return "";
    std::uint64_t bytes = 0;
    if (__builtin_mul_overflow(text.size(), static_cast<std::uint64_t>(n), &bytes))
      bytes = ~std::uint64_t{0} - 16;
    budget_.charge_bytes(bytes);
    std::string out;
    out.reserve(bytes);
    while (n-- > 0) out += text;
    return out;
  }

  static Value arithmetic(const Value& left, const std::string& op, const Value& right) {
    if (op == "/" || left.is_float() || right.is_float()) {
      const double a = left.number(), b = right.number();
      if (op == "+") return a + b;
      if (op == "-") return a - b;
      if (op == "*") return a * b;
      if (b == 0) throw TemplateError{"division by zero"};
      if (op == "/") return a / b;
      // Python's: the remainder has the divisor's sign.
      double remainder = std::fmod(a, b);
      if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
      if (op == "%") return remainder;
      return std::floor((a - remainder) / b + 0.5);
    }
    const std::int64_t a = left.integer(), b = right.integer();
    std::int64_t out = 0;
    bool overflow = false;
    if (op == "+")
      overflow = __builtin_add_overflow(a, b, &out);
    else if (op == "-")
      overflow = __builtin_sub_overflow(a, b, &out);
    else if (op == "*")
      overflow = __builtin_mul_overflow(a, b, &out);
    else if (b == 0)
      throw TemplateError{"division by zero"};
    else if (b == -1)
      overflow = op == "//" && __builtin_sub_overflow(std::int64_t{0}, a, &out);
    else {
      const bool adjust = a % b != 0 && (a % b < 0) != (b < 0);
      out = op == "//" ? a / b - (adjust ? 1 : 0) : a % b + (adjust ? b : 0);
    }
    if (overflow) throw TemplateError{"a number over 64 bits"};
    return out;
  }

  // --- functions

  Value call(const Expression& e) {
    const std::string& name = e.operands[0]->text;
    const Value callee = lookup(name);
    const Arguments given = arguments(e);
    if (callee.macro()) return call_macro(*callee.macro(), given);
    if (!callee.is_undefined())
      throw TemplateError{fmt::format("'{}' object is not callable", callee.type_name())};
    if (name == "raise_exception") {
      given.allow(name, 1, {"message"});
      const Value* message = given.get(0, "message");
      throw TemplateError{message ? message->str() : "raise_exception"};
    }
    if (name == "namespace") return name_space(given);
    if (name == "range") return range(given);
    if (name == "dict" && given.positional.empty()) return Map{given.named};
    throw TemplateError{fmt::format("'{}' is undefined", name.substr(0, 64))};
  }

  Value name_space(const Arguments& given) {
    if (given.positional.size() > 1 ||
        (given.positional.size() == 1 && !given.positional[0].is_map()))
      throw TemplateError{"namespace: names with values, or one map, wanted"};
    namespaces_.emplace_back();
    auto& values = namespaces_.back().values;
    if (!given.positional.empty())
      for (const auto& [name, value] : given.positional[0].map().entries)
        values.insert_or_assign(name, value);
    for (const auto& [name, value] : given.named) values.insert_or_assign(name, value);
    return &namespaces_.back();
  }

  Value range(const Arguments& given) {
    given.allow("range", 3, {});
    std::int64_t numbers[3] = {0, 0, 1};
    const std::size_t n = given.positional.size();
    if (n == 0) throw TemplateError{"range: a number wanted"};
    for (std::size_t i = 0; i < n; ++i) {
      const Value& value = given.positional[i];
      if (!value.is_int() && !value.is_bool())
        throw TemplateError{fmt::format("range: {} found, an integer wanted", value.type_name())};
      numbers[n == 1 ? 1 : i] = value.integer();
    }
    const auto [begin, end, step] = numbers;
    if (step == 0) throw TemplateError{"range: a step of zero"};
    List out;
    for (std::int64_t at = begin; step > 0 ? at < end : at > end;) {
      if (static_cast<std::int64_t>(out.size()) >= kMaxRange)
        throw TemplateError{fmt::format("range: more than {} numbers", kMaxRange), 0, false, true};
      out.emplace_back(at);
      if (__builtin_add_overflow(at, step, &at)) break;
    }
    budget_.charge_elements(out.size());
    return out;
  }

  Value call_macro(const Macro& macro, const Arguments& given) {
    if (given.positional.size() > macro.parameters.size())
      throw TemplateError{fmt::format("macro '{}': {} arguments found, at most {} wanted",
                                      macro.name, given.positional.size(),
                                      macro.parameters.size())};
    for (const auto& [name, value] : given.named)
      if (std::find(macro.parameters.begin(), macro.parameters.end(), name) ==
          macro.parameters.end())
        throw TemplateError{fmt::format("macro '{}': unexpected argument '{}'", macro.name, name)};
    const std::size_t outer = std::exchange(base_, scopes_.size());
    scopes_.emplace_back();
    const std::size_t required = macro.parameters.size() - macro.defaults.size();
    for (std::size_t i = 0; i < macro.parameters.size(); ++i) {
      const Value* value = given.get(i, macro.parameters[i]);
      assign(macro.parameters[i], value           ? *value
                                  : i >= required ? evaluate(*macro.defaults[i - required])
                                                  : Value(Undefined{macro.parameters[i]}));
    }
    std::string out;
    execute(macro.body, out);
    scopes_.pop_back();
    base_ = outer;
    return out;
  }

  Budget budget_;
  std::vector<Scope>
      scopes_;  // the caller's names, the template's, then one for each loop or macro in progress
  std::size_t base_ = 0;  // the first scope of the macro in progress
  std::deque<Loop> loops_;
  std::deque<Value> kept_;  // what loops_ go over
  std::deque<Namespace> namespaces_;
  int depth_ = 0;
};

}  // namespace

std::string render(const Body& body, const Entries& context, std::uint64_t budget) {
  return Renderer(context, budget).run(body);
}

}  // namespace foretoken::jinja
