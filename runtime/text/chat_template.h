// The model's own chat template: a Jinja subset, parsed once, rendered per request in a sandbox
// with limits on steps and output. Immutable; any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken {

struct ChatMessage {
  std::string role;
  std::string content;
};

class ChatTemplate {
 public:
  // An unsupported construct is an error that names it and its line.
  static Result<std::unique_ptr<ChatTemplate>> parse(std::string_view source, std::string bos_token,
                                                     std::string eos_token);
  virtual ~ChatTemplate() = default;
  // raise_exception() in the template, or a limit, becomes an error with its message.
  virtual Result<std::string> render(const std::vector<ChatMessage>& messages,
                                     bool add_generation_prompt) const = 0;
};

}  // namespace foretoken
