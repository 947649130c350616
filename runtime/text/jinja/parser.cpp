#include "runtime/text/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "runtime/text/jinja/builtins.h"
#include "runtime/text/jinja/lexer.h"

namespace foretoken::jinja {
namespace {

using Kind = Expression::Kind;

// Of expressions and of blocks: bounds the stack that a hostile template can use. Published
// templates nest less than 10 deep.
constexpr int kMaxParseDepth = 300;
// A chain such as a.b.c or x|f|g becomes a tree as deep as it is long.
constexpr int kMaxChain = 200;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Body run() {
    Body body = block({});
    if (current().kind != Token::Kind::kEnd) fail("the template ends early");
    return body;
  }

 private:
  class Deeper {
   public:
    explicit Deeper(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxParseDepth) parser_.fail("nested too deeply");
    }
    ~Deeper() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  [[noreturn]] void fail(std::string message) const {
    throw TemplateError{std::move(message), current().line};
  }
  [[noreturn]] void unsupported(const std::string& what) const {
    throw TemplateError{what + ": not supported", current().line, true};
  }

  const Token& current() const { return tokens_[at_]; }
  const Token& next() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool is(Token::Kind kind) const { return current().kind == kind; }
  bool is_operator(std::string_view text) const {
    return is(Token::Kind::kOperator) && current().text == text;
  }
  bool is_name(std::string_view text) const {
    return is(Token::Kind::kName) && current().text == text;
  }
  bool skip_operator(std::string_view text) {
    if (!is_operator(text)) return false;
    next();
    return true;
  }
  bool skip_name(std::string_view text) {
    if (!is_name(text)) return false;
    next();
    return true;
  }
  void expect_operator(std::string_view text) {
    if (!skip_operator(text)) fail(fmt::format("{} found, '{}' wanted", shown(), text));
  }
  void expect_name(std::string_view text) {
    if (!skip_name(text)) fail(fmt::format("{} found, '{}' wanted", shown(), text));
  }
  std::string name() {
    if (!is(Token::Kind::kName)) fail(fmt::format("{} found, a name wanted", shown()));
    return next().text;
  }
  void end_of_block() {
    if (!is(Token::Kind::kBlockEnd)) fail(fmt::format("{} found, '%}}' wanted", shown()));
    next();
  }
  std::string shown() const {
    switch (current().kind) {
      case Token::Kind::kEnd:
        return "the end of the template";
      case Token::Kind::kBlockEnd:
        return "'%}'";
      case Token::Kind::kPrintEnd:
        return "'}}'";
      case Token::Kind::kText:
        return "text";
      default:
        return "'" + current().text.substr(0, 40) + "'";
    }
  }

  ExpressionPointer make(Kind kind, std::string text = "") const {
    auto made = std::make_unique<Expression>();
    made->kind = kind;
    made->line = current().line;
    made->text = std::move(text);
    return made;
  }
  template <class... Operands>
  static ExpressionPointer with(ExpressionPointer made, Operands... operands) {
    (made->operands.push_back(std::move(operands)), ...);
    return made;
  }

  // What stands between commas up to the closing bracket, which may follow one.
  template <class One>
  void separated(std::string_view end, One one) {
    for (bool first = true; !is_operator(end); first = false) {
      if (!first) expect_operator(",");
      if (is_operator(end)) break;
      one();
    }
    next();
  }

  // Statements up to one of the ends, whose name is left as the current token.
  Body block(std::initializer_list<std::string_view> ends) {
    const Deeper deeper(*this);
    Body body;
    while (!is(Token::Kind::kEnd)) {
      if (is(Token::Kind::kText)) {
        body.push_back(statement(Statement::Kind::kText));
        body.back().text = next().text;
      } else if (is(Token::Kind::kPrintBegin)) {
        next();
        body.push_back(statement(Statement::Kind::kPrint));
        body.back().value = tuple_or_expression();
        if (!is(Token::Kind::kPrintEnd)) fail(fmt::format("{} found, '}}}}' wanted", shown()));
        next();
      } else {
        next();
        if (is(Token::Kind::kName) &&
            std::find(ends.begin(), ends.end(), current().text) != ends.end())
          return body;
        tag(body);
      }
    }
    if (ends.size() > 0)
      fail(fmt::format("the template ends inside a block, '{}' wanted", *(ends.end() - 1)));
    return body;
  }

  Statement statement(Statement::Kind kind) const {
    Statement made{.kind = kind};
    made.line = current().line;
    return made;
  }

  void tag(Body& body) {
    if (is_name("if")) return body.push_back(if_statement());
    if (is_name("for")) return body.push_back(for_statement());
    if (is_name("set")) return body.push_back(set_statement());
    if (is_name("macro")) return body.push_back(macro_statement());
    if (is_name("break") || is_name("continue")) {
      if (loops_ == 0) fail(fmt::format("'{}' outside of a loop", current().text));
      body.push_back(
          statement(is_name("break") ? Statement::Kind::kBreak : Statement::Kind::kContinue));
      next();
      return end_of_block();
    }
    for (const char* known : {"block", "extends", "include", "import", "from", "call", "filter",
                              "with", "autoescape", "do", "generation", "trans"})
      if (is_name(known)) unsupported(fmt::format("tag '{}'", known));
    fail(fmt::format("{} found, a tag's name wanted", shown()));
  }

  void otherwise_and_end(Statement& made, std::string_view end) {
    if (skip_name("else")) {
      end_of_block();
      made.otherwise = block({end});
    }
    expect_name(end);
    end_of_block();
  }

  Statement if_statement() {
    Statement made = statement(Statement::Kind::kIf);
    do {
      next();  // if, elif
      Branch branch;
      branch.test = tuple_or_expression(false);
      end_of_block();
      branch.body = block({"elif", "else", "endif"});
      made.branches.push_back(std::move(branch));
    } while (is_name("elif"));
    otherwise_and_end(made, "endif");
    return made;
  }

  Statement for_statement() {
    Statement made = statement(Statement::Kind::kFor);
    next();
    made.target = target();
    expect_name("in");
    made.value = tuple_or_expression(false);
    if (skip_name("if")) made.filter = expression();
    if (is_name("recursive")) unsupported("a recursive loop");
    end_of_block();
    ++loops_;
    made.body = block({"else", "endfor"});
    --loops_;
    otherwise_and_end(made, "endfor");
    return made;
  }

  Target target() {
    Target made;
    const bool bracket = skip_operator("(");
    do {
      if (!made.names.empty() && !is(Token::Kind::kName)) break;  // a comma at the end
      made.names.push_back(name());
      for (const char* reserved : {"true", "false", "none", "True", "False", "None", "loop"})
        if (made.names.back() == reserved) fail(fmt::format("cannot assign to '{}'", reserved));
      if (!is_operator(",")) continue;
      made.unpack = true;
    } while (skip_operator(","));
    if (bracket) expect_operator(")");
    return made;
  }

  Statement set_statement() {
    Statement made = statement(Statement::Kind::kSet);
    next();
    made.target = target();
    if (!made.target.unpack && skip_operator(".")) made.target.attribute = name();
    if (is_operator("|")) unsupported("a filter on a set block");
    if (skip_operator("=")) {
      made.value = tuple_or_expression();
      end_of_block();
      return made;
    }
    made.kind = Statement::Kind::kSetBlock;
    end_of_block();
    made.body = block({"endset"});
    expect_name("endset");
    end_of_block();
    return made;
  }

  Statement macro_statement() {
    Statement made = statement(Statement::Kind::kMacro);
    next();
    made.macro = std::make_unique<Macro>();
    made.macro->name = name();
    expect_operator("(");
    separated(")", [&] {
      made.macro->parameters.push_back(name());
      if (skip_operator("="))
        made.macro->defaults.push_back(expression());
      else if (!made.macro->defaults.empty())
        fail("a parameter without a default after one with");
    });
    end_of_block();
    const int loops = std::exchange(loops_, 0);
    made.macro->body = block({"endmacro"});
    loops_ = loops;
    expect_name("endmacro");
    if (is(Token::Kind::kName)) next();
    end_of_block();
    return made;
  }

  // a, b, c without brackets makes a list.
  ExpressionPointer tuple_or_expression(bool conditional = true) {
    const auto one = [&] { return conditional ? expression() : or_expression(); };
    ExpressionPointer first = one();
    if (!is_operator(",")) return first;
    ExpressionPointer list = with(make(Kind::kTuple), std::move(first));
    while (skip_operator(",")) {
      if (is(Token::Kind::kBlockEnd) || is(Token::Kind::kPrintEnd)) break;
      list->operands.push_back(one());
    }
    return list;
  }

  ExpressionPointer expression() {
    const Deeper deeper(*this);
    ExpressionPointer value = or_expression();
    for (int chain = 0; is_name("if"); ++chain) {
      if (chain > kMaxChain) fail("too long a chain of conditions");
      ExpressionPointer made = make(Kind::kCondition);
      next();
      ExpressionPointer test = or_expression();
      ExpressionPointer otherwise = skip_name("else") ? expression() : nullptr;
      value = with(std::move(made), std::move(value), std::move(test), std::move(otherwise));
    }
    return value;
  }

  // Operators of one precedence, grouped to the left.
  template <class Operand, class Match>
  ExpressionPointer left_grouped(Operand operand, Match match) {
    ExpressionPointer left = operand();
    for (int chain = 0;; ++chain) {
      ExpressionPointer made = match();
      if (!made) return left;
      if (chain > kMaxChain) fail("too long a chain of operators");
      next();
      left = with(std::move(made), std::move(left), operand());
    }
  }

  ExpressionPointer or_expression() {
    const Deeper deeper(*this);
    return left_grouped([&] { return and_expression(); },
                        [&] { return is_name("or") ? make(Kind::kOr) : nullptr; });
  }
  ExpressionPointer and_expression() {
    return left_grouped([&] { return not_expression(); },
                        [&] { return is_name("and") ? make(Kind::kAnd) : nullptr; });
  }
  ExpressionPointer not_expression() {
    if (!is_name("not")) return comparison();
    const Deeper deeper(*this);
    ExpressionPointer made = make(Kind::kNot);
    next();
    return with(std::move(made), not_expression());
  }

  ExpressionPointer comparison() {
    ExpressionPointer left = sum();
    ExpressionPointer made = make(Kind::kCompare);
    while (true) {
      std::string op;
      for (const char* text : {"==", "!=", ">=", "<=", ">", "<"})
        if (is_operator(text)) op = text;
      if (is_name("in")) op = "in";
      if (is_name("not") && tokens_[at_ + 1].kind == Token::Kind::kName &&
          tokens_[at_ + 1].text == "in") {
        next();
        op = "not in";
      }
      if (op.empty()) break;
      next();
      made->operators.push_back(op);
      made->operands.push_back(sum());
    }
    if (made->operators.empty()) return left;
    made->operands.insert(made->operands.begin(), std::move(left));
    return made;
  }

  ExpressionPointer sum() {
    return left_grouped([&] { return concatenation(); },
                        [&] {
                          return is_operator("+") || is_operator("-")
                                     ? make(Kind::kBinary, current().text)
                                     : nullptr;
                        });
  }
  ExpressionPointer concatenation() {
    ExpressionPointer first = product();
    if (!is_operator("~")) return first;
    ExpressionPointer made = with(make(Kind::kConcat), std::move(first));
    while (skip_operator("~")) made->operands.push_back(product());
    return made;
  }
  ExpressionPointer product() {
    return left_grouped([&] { return unary(true); },
                        [&]() -> ExpressionPointer {
                          for (const char* op : {"*", "/", "//", "%"})
                            if (is_operator(op)) return make(Kind::kBinary, op);
                          return nullptr;
                        });
  }

  ExpressionPointer unary(bool filters) {
    ExpressionPointer value;
    if (is_operator("-") || is_operator("+")) {
      const Deeper deeper(*this);
      ExpressionPointer made = make(is_operator("-") ? Kind::kNegate : Kind::kPlus);
      next();
      value = with(std::move(made), unary(false));
    } else {
      value = primary();
    }
    value = postfix(std::move(value));
    if (filters) value = filters_and_tests(std::move(value));
    if (is_operator("**")) unsupported("operator '**'");
    return value;
  }

  ExpressionPointer constant(Value value) {
    ExpressionPointer made = make(Kind::kConstant);
    made->constant = std::move(value);
    return made;
  }

  template <class T>
  ExpressionPointer number() {
    const std::string& digits = current().text;
    T value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (is(Token::Kind::kInteger) && (error != std::errc{} || end != digits.data() + digits.size()))
      fail(fmt::format("number {}: over 64 bits", digits.substr(0, 40)));
    ExpressionPointer made = constant(value);
    next();
    return made;
  }

  ExpressionPointer primary() {
    const Deeper deeper(*this);
    switch (current().kind) {
      case Token::Kind::kName: {
        const std::string& text = current().text;
        ExpressionPointer made;
        if (text == "true" || text == "True")
          made = constant(true);
        else if (text == "false" || text == "False")
          made = constant(false);
        else if (text == "none" || text == "None")
          made = constant(None{});
        else
          made = make(Kind::kName, text);
        next();
        return made;
      }
      case Token::Kind::kString: {
        std::string text;
        while (is(Token::Kind::kString)) text += next().text;  // neighbours are one string
        return constant(std::move(text));
      }
      case Token::Kind::kInteger:
        return number<std::int64_t>();
      case Token::Kind::kFloat:
        return number<double>();
      default:
        break;
    }
    if (is_operator("(")) return brackets();
    if (is_operator("[")) {
      ExpressionPointer list = make(Kind::kList);
      next();
      separated("]", [&] { list->operands.push_back(expression()); });
      return list;
    }
    if (is_operator("{")) {
      ExpressionPointer map = make(Kind::kMap);
      next();
      separated("}", [&] {
        map->operands.push_back(expression());
        expect_operator(":");
        map->operands.push_back(expression());
      });
      return map;
    }
    fail(fmt::format("{} found, a value wanted", shown()));
  }

  ExpressionPointer brackets() {
    next();
    if (is_operator(")")) {
      next();
      return make(Kind::kTuple);
    }
    ExpressionPointer first = expression();
    if (!is_operator(",")) {
      expect_operator(")");
      return first;
    }
    ExpressionPointer list = with(make(Kind::kTuple), std::move(first));
    while (skip_operator(",") && !is_operator(")")) list->operands.push_back(expression());
    expect_operator(")");
    return list;
  }

  ExpressionPointer postfix(ExpressionPointer value) {
    for (int chain = 0;; ++chain) {
      if (chain > kMaxChain) fail("too long a chain of subscripts");
      if (is_operator(".")) {
        next();
        if (is(Token::Kind::kInteger)) {
          ExpressionPointer made = make(Kind::kItem);
          value = with(std::move(made), std::move(value), primary());
        } else {
          ExpressionPointer made = make(Kind::kAttribute);
          made->text = name();
          value = with(std::move(made), std::move(value));
        }
      } else if (is_operator("[")) {
        value = subscript(std::move(value));
      } else if (is_operator("(")) {
        value = call(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPointer subscript(ExpressionPointer value) {
    ExpressionPointer made = make(Kind::kItem);
    next();
    std::vector<ExpressionPointer> parts(1);
    while (!is_operator("]")) {
      if (is_operator(":")) {
        next();
        parts.emplace_back();
        if (parts.size() > 3) fail("too many ':' in a subscript");
      } else if (!parts.back()) {
        parts.back() = expression();
      } else {
        break;
      }
    }
    if (is_operator(",")) unsupported("a comma in a subscript");
    expect_operator("]");
    made->operands.push_back(std::move(value));
    if (parts.size() == 1) {
      if (!parts[0]) fail("an empty subscript");
      made->operands.push_back(std::move(parts[0]));
      return made;
    }
    made->kind = Kind::kSlice;
    parts.resize(3);
    for (ExpressionPointer& part : parts) made->operands.push_back(std::move(part));
    return made;
  }

  ExpressionPointer call(ExpressionPointer callee) {
    ExpressionPointer made = make(Kind::kCall);
    if (callee->kind == Kind::kAttribute) {
      if (!is_method(callee->text)) unsupported(fmt::format("method '{}'", callee->text));
      made->kind = Kind::kMethod;
      made->text = callee->text;
      made->arguments = arguments();
      return with(std::move(made), std::move(callee->operands[0]));
    }
    if (callee->kind != Kind::kName) unsupported("calling what is not a name");
    made->arguments = arguments();
    return with(std::move(made), std::move(callee));
  }

  std::vector<Argument> arguments() {
    std::vector<Argument> out;
    expect_operator("(");
    separated(")", [&] {
      if (is_operator("*") || is_operator("**")) unsupported("unpacked arguments");
      Argument argument;
      if (is(Token::Kind::kName) && tokens_[at_ + 1].kind == Token::Kind::kOperator &&
          tokens_[at_ + 1].text == "=") {
        argument.name = next().text;
        next();
      } else if (!out.empty() && !out.back().name.empty()) {
        fail("a positional argument after a named one");
      }
      argument.value = expression();
      out.push_back(std::move(argument));
    });
    return out;
  }

  ExpressionPointer filters_and_tests(ExpressionPointer value) {
    for (int chain = 0;; ++chain) {
      if (chain > kMaxChain) fail("too long a chain of filters");
      if (is_operator("|")) {
        next();
        ExpressionPointer made = make(Kind::kFilter);
        if (!is_filter(current().text) && is(Token::Kind::kName))
          unsupported(fmt::format("filter '{}'", current().text));
        made->text = name();
        if (is_operator("(")) made->arguments = arguments();
        value = with(std::move(made), std::move(value));
      } else if (is_name("is")) {
        value = test(std::move(value));
      } else if (is_operator("(")) {
        value = call(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPointer test(ExpressionPointer value) {
    next();
    const bool negated = skip_name("not");
    ExpressionPointer made = make(Kind::kTest);
    if (!is(Token::Kind::kName)) fail(fmt::format("{} found, a test's name wanted", shown()));
    if (!is_test(current().text)) unsupported(fmt::format("test '{}'", current().text));
    made->text = next().text;
    const bool word = is(Token::Kind::kName) && !is_name("else") && !is_name("or") &&
                      !is_name("and") && !is_name("is") && !is_name("if") && !is_name("in") &&
                      !is_name("not");
    if (is_operator("(")) {
      made->arguments = arguments();
    } else if (word || is(Token::Kind::kString) || is(Token::Kind::kInteger) ||
               is(Token::Kind::kFloat) || is_operator("[") || is_operator("{")) {
      made->arguments.push_back({"", postfix(primary())});
    }
    ExpressionPointer out = with(std::move(made), std::move(value));
    return negated ? with(make(Kind::kNot), std::move(out)) : std::move(out);
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

Body parse_template(std::string_view source) { return Parser(source).run(); }

}  // namespace foretoken::jinja
