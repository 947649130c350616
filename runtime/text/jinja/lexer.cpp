#include "runtime/text/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "runtime/text/jinja/value.h"
#include "runtime/unicode/unicode.h"

namespace foretoken::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) text();
    add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(std::string message, bool unsupported = false) const {
    throw TemplateError{std::move(message), line_, unsupported};
  }

  bool sees(std::string_view what) const {
    return std::string_view(source_).substr(at_).starts_with(what);
  }
  char peek(std::size_t ahead = 0) const {
    return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0';
  }

  void add(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, line_, std::move(text)});
  }

  void advance(std::size_t n) {
    line_ += static_cast<int>(std::count(source_.begin() + std::ptrdiff_t(at_),
                                         source_.begin() + std::ptrdiff_t(at_ + n), '\n'));
    at_ += n;
  }

  void skip_space() {
    const std::string_view rest = std::string_view(source_).substr(at_);
    advance(rest.size() - strip_left(rest).size());
  }

  // Literal text up to the next tag, and the tag's opening.
  void text() {
    std::size_t begin = at_;
    std::size_t end = begin;
    do {
      end = source_.find('{', end);
      if (end == std::string::npos) break;
      const char next = end + 1 < source_.size() ? source_[end + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') break;
      ++end;
    } while (true);
    if (end == std::string::npos) {
      add(Token::Kind::kText, source_.substr(begin));
      advance(source_.size() - at_);
      return;
    }
    const char type = source_[end + 1];
    const char sign = end + 2 < source_.size() ? source_[end + 2] : '\0';
    add_text_before_tag(begin, end, type, sign);
    advance(end - begin + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    if (type == '#') return comment();
    if (type == '%') {
      const std::size_t tag = at_;
      if (raw_block()) return;
      at_ = tag;
    }
    add(type == '%' ? Token::Kind::kBlockBegin : Token::Kind::kPrintBegin, "");
    tag(type == '%');
  }

  void add_text_before_tag(std::size_t begin, std::size_t end, char type, char sign) {
    std::string_view text = std::string_view(source_).substr(begin, end - begin);
    if (sign == '-') {
      text = strip_right(text);
    } else if (sign != '+' && type != '{') {
      // lstrip_blocks: nothing but blanks between the line's start and the tag.
      std::size_t keep = text.size();
      while (keep > 0 && (text[keep - 1] == ' ' || text[keep - 1] == '\t')) --keep;
      const bool line_start =
          keep > 0 ? text[keep - 1] == '\n' : begin == 0 || source_[begin - 1] == '\n';
      if (line_start) text = text.substr(0, keep);
    }
    if (!text.empty()) add(Token::Kind::kText, std::string(text));
  }

  // After the end of a block or comment: -%} strips all white space, +%} nothing, %} one newline
  // (trim_blocks).
  bool close(std::string_view end) {
    if (peek() == '-' && std::string_view(source_).substr(at_ + 1).starts_with(end)) {
      advance(1 + end.size());
      skip_space();
      return true;
    }
    const bool keep = peek() == '+' && std::string_view(source_).substr(at_ + 1).starts_with(end);
    if (!keep && !sees(end)) return false;
    advance(end.size() + (keep ? 1 : 0));
    if (!keep && end != "}}" && peek() == '\n') advance(1);
    return true;
  }

  void comment() {
    const int opened = line_;
    while (at_ < source_.size()) {
      if (close("#}")) return;
      advance(1);
    }
    line_ = opened;
    fail("a comment is not closed, '#}' wanted");
  }

  // {% raw %} ... {% endraw %}: what lies between is text.
  bool raw_block() {
    const auto word = [&](std::string_view name) {
      while (peek() == ' ' || peek() == '\t' || peek() == '\n') ++at_;
      if (!sees(name)) return false;
      at_ += name.size();
      while (peek() == ' ' || peek() == '\t' || peek() == '\n') ++at_;
      return true;
    };
    if (!word("raw")) return false;
    if (sees("-%}")) {
      at_ += 3;
      skip_space();
    } else if (sees("%}")) {
      at_ += 2;
    } else {
      return false;
    }
    const std::size_t begin = at_;
    for (std::size_t end = source_.find("{%", begin); end != std::string::npos;
         end = source_.find("{%", end + 2)) {
      const char sign = end + 2 < source_.size() ? source_[end + 2] : '\0';
      at_ = end + 2 + (sign == '-' || sign == '+' ? 1 : 0);
      if (!word("endraw")) continue;
      if (!sees("-%}") && !sees("+%}") && !sees("%}")) continue;
      add_text_before_tag(begin, end, '%', sign);
      line_ += static_cast<int>(std::count(source_.begin() + std::ptrdiff_t(begin),
                                           source_.begin() + std::ptrdiff_t(at_), '\n'));
      return close("%}");
    }
    fail("a raw block is not closed, {% endraw %} wanted");
  }

  // The inside of {{ }} or {% %}.
  void tag(bool block) {
    const int opened = line_;
    std::string brackets;
    while (true) {
      skip_space();
      if (at_ >= source_.size()) {
        line_ = opened;
        fail(fmt::format("a tag is not closed, '{}' wanted", block ? "%}" : "}}"));
      }
      if (brackets.empty()) {
        const std::size_t tokens = tokens_.size();
        add(block ? Token::Kind::kBlockEnd : Token::Kind::kPrintEnd, "");
        if (!(!block && peek() == '+') && close(block ? "%}" : "}}")) return;
        tokens_.erase(tokens_.begin() + std::ptrdiff_t(tokens), tokens_.end());
      }
      const char c = peek();
      if (is_name_start(c))
        name();
      else if (is_digit(c))
        number();
      else if (c == '\'' || c == '"')
        string();
      else
        operator_(brackets);
    }
  }

  void name() {
    std::size_t n = 1;
    while (is_name_start(peek(n)) || is_digit(peek(n))) ++n;
    add(Token::Kind::kName, source_.substr(at_, n));
    advance(n);
  }

  std::string digits() {
    std::string out;
    while (is_digit(peek()) || (peek() == '_' && is_digit(peek(1)) && !out.empty())) {
      if (peek() != '_') out += peek();
      ++at_;
    }
    return out;
  }

  void number() {
    std::string out = digits();
    bool real = false;
    if (peek() == '.' && is_digit(peek(1))) {
      ++at_;
      out += "." + digits();
      real = true;
    }
    if (const std::size_t sign = peek(1) == '+' || peek(1) == '-' ? 1 : 0;
        (peek() == 'e' || peek() == 'E') && is_digit(peek(1 + sign))) {
      out += source_.substr(at_, 1 + sign);
      at_ += 1 + sign;
      out += digits();
      real = true;
    }
    if (is_name_start(peek())) fail(fmt::format("number {}{}: not supported", out, peek()), true);
    add(real ? Token::Kind::kFloat : Token::Kind::kInteger, std::move(out));
  }

  char32_t escape_digits(int n, int base) {
    char32_t value = 0;
    for (int i = 0; i < n; ++i, ++at_) {
      const char c = peek();
      const int digit = is_digit(c)            ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : 99;
      if (digit >= base) fail("a string escape has too few digits");
      value = value * char32_t(base) + char32_t(digit);
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
      fail("a string escape is not a character");
    return value;
  }

  void string() {
    const char quote = peek();
    const std::size_t begin = at_++;
    std::string out;
    while (true) {
      if (at_ >= source_.size()) {
        at_ = begin;
        fail("a string is not closed");
      }
      const char c = source_[at_++];
      if (c == quote) break;
      if (c != '\\') {
        out += c;
        continue;
      }
      const char escaped = peek();
      ++at_;
      constexpr std::string_view kEscapes = "ntrabfv", kMeant = "\n\t\r\a\b\f\v";
      if (const std::size_t known = kEscapes.find(escaped); known != std::string_view::npos) {
        out += kMeant[known];
        continue;
      }
      switch (escaped) {
        case '\\':
        case '\'':
        case '"':
          out += escaped;
          break;
        case '\n':
          break;
        case 'x':
          append_utf8(out, escape_digits(2, 16));
          break;
        case 'u':
          append_utf8(out, escape_digits(4, 16));
          break;
        case 'U':
          append_utf8(out, escape_digits(8, 16));
          break;
        case 'N':
          fail("string escape \\N: not supported", true);
        default:
          if (escaped >= '0' && escaped <= '7') {
            --at_;
            int n = 0;
            while (n < 3 && peek(std::size_t(n)) >= '0' && peek(std::size_t(n)) <= '7') ++n;
            append_utf8(out, escape_digits(n, 8));
          } else {
            --at_;  // an unknown escape keeps its backslash
            out += '\\';
          }
      }
    }
    add(Token::Kind::kString, std::move(out));
    line_ += static_cast<int>(std::count(source_.begin() + std::ptrdiff_t(begin),
                                         source_.begin() + std::ptrdiff_t(at_), '\n'));
  }

  void operator_(std::string& brackets) {
    constexpr std::array<std::string_view, 26> operators = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (const std::string_view op : operators) {
      if (!sees(op)) continue;
      if (op == "[" || op == "(" || op == "{") brackets += op;
      if (op == "]" || op == ")" || op == "}") {
        const char open = op == "]" ? '[' : op == ")" ? '(' : '{';
        if (brackets.empty() || brackets.back() != open) fail(fmt::format("unexpected '{}'", op));
        brackets.pop_back();
      }
      add(Token::Kind::kOperator, std::string(op));
      advance(op.size());
      return;
    }
    const Utf8Step step = utf8_step(std::string_view(source_).substr(at_));
    fail(fmt::format("unexpected character '{}' in a tag",
                     std::string_view(source_).substr(at_, std::size_t(step.bytes))));
  }

  const std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace foretoken::jinja
