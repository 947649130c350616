// The C++ side of the chat template oracle. Reads cases on stdin as records of NUL-terminated
// fields: the template, "1" or "0" for add_generation_prompt, the number of messages, then each
// message's role and content. Prints for each: "ok N" or "error N" and, on the next line, N bytes
// of text or message. template_oracle.py compares them with PyPI's jinja2.
#include <iostream>
#include <string>

#include "runtime/text/chat_template.h"

int main() {
  std::string source;
  const auto field = [] {
    std::string text;
    std::getline(std::cin, text, '\0');
    return text;
  };
  while (std::getline(std::cin, source, '\0')) {
    const bool generation_prompt = field() == "1";
    std::vector<foretoken::ChatMessage> messages(std::stoul(field()));
    for (auto& message : messages) {
      message.role = field();
      message.content = field();
    }
    const auto answer = [](const char* kind, const std::string& text) {
      std::cout << kind << ' ' << text.size() << '\n' << text << '\n';
    };
    const auto parsed = foretoken::ChatTemplate::parse(source, "<s>", "</s>");
    if (!parsed) {
      answer("error", parsed.error().message);
      continue;
    }
    const auto rendered = (*parsed)->render(messages, generation_prompt);
    if (rendered)
      answer("ok", *rendered);
    else
      answer("error", rendered.error().message);
  }
  return 0;
}
