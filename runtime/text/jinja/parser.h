// Tokens to a syntax tree, by jinja2's grammar. What is well-formed but not supported (a tag,
// filter, test, method or operator) is a TemplateError that names it and its line, here rather than
// in a request.
#pragma once

#include <string_view>

#include "runtime/text/jinja/ast.h"

namespace foretoken::jinja {

Body parse_template(std::string_view source);

}  // namespace foretoken::jinja
