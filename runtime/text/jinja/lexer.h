// Template source to tokens, with jinja2's white-space rules as chat templates are run: trim_blocks
// and lstrip_blocks on, one newline at the end dropped, line ends made "\n".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace foretoken::jinja {

struct Token {
  enum class Kind {
    kText,  // outside of tags
    kPrintBegin,
    kPrintEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Kind kind;
  int line;
  std::string text;  // a string literal's value, a name, an operator, digits without '_'
};

// Throws TemplateError. The source must be well-formed UTF-8.
std::vector<Token> tokenize(std::string_view source);

}  // namespace foretoken::jinja
