// Runs a parsed template. One rendering, one thread; the template is only read.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/text/jinja/ast.h"

namespace foretoken::jinja {

// `context` is what the template sees by name. Throws TemplateError, also when `budget` (see
// Budget) is spent.
std::string render(const Body& body, const Entries& context, std::uint64_t budget);

}  // namespace foretoken::jinja
