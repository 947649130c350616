// The syntax tree of a template. Built once by the parser, then read by any number of renderings.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/text/jinja/value.h"

namespace foretoken::jinja {

struct Expression;
using ExpressionPointer = std::unique_ptr<Expression>;

struct Argument {
  std::string name;  // empty: positional
  ExpressionPointer value;
};

struct Expression {
  enum class Kind {
    kConstant,  // constant
    kName,      // text
    kList,      // operands
    kTuple,     // operands
    kMap,       // operands: key, value, key, value ...
    kNegate,    // -operands[0]
    kPlus,      // +operands[0]
    kNot,       // not operands[0]
    kBinary,    // text: + - * / // %
    kConcat,    // operands joined as text
    kAnd,
    kOr,
    kCompare,    // operands[0] operators[0] operands[1] operators[1] ...: "==", "<", "in", "not in"
    kCondition,  // operands: value, test, otherwise (or null)
    kAttribute,  // operands[0].text
    kItem,       // operands[0][operands[1]]
    kSlice,  // operands[0][operands[1]:operands[2]:operands[3]], each of the last three may be null
    kCall,   // operands[0](arguments)
    kMethod,  // operands[0].text(arguments)
    kFilter,  // operands[0] | text(arguments)
    kTest,    // operands[0] is text(arguments)
  };
  Kind kind;
  int line = 0;
  std::string text;
  Value constant;
  std::vector<ExpressionPointer> operands;
  std::vector<std::string> operators;
  std::vector<Argument> arguments;
};

struct Statement;
using Body = std::vector<Statement>;

// What is assigned to: names (one, or several that a list is unpacked into), or an attribute of a
// namespace.
struct Target {
  std::vector<std::string> names;
  bool unpack = false;
  std::string attribute;  // of the namespace names[0]
};

struct Macro {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExpressionPointer> defaults;  // of the last defaults.size() parameters
  Body body;
};

struct Branch {
  ExpressionPointer test;
  Body body;
};

struct Statement {
  enum class Kind {
    kText,      // text
    kPrint,     // value
    kIf,        // branches, otherwise
    kFor,       // target, value, filter (or null), body, otherwise
    kSet,       // target, value
    kSetBlock,  // target, body
    kMacro,     // macro
    kBreak,
    kContinue,
  };
  Kind kind;
  int line = 0;
  std::string text;
  ExpressionPointer value;
  ExpressionPointer filter;
  Target target;
  std::vector<Branch> branches;
  Body body;
  Body otherwise;
  std::unique_ptr<Macro> macro;
};

}  // namespace foretoken::jinja
