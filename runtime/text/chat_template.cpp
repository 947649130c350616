#include "runtime/text/chat_template.h"

#include <fmt/format.h>

#include "runtime/text/jinja/parser.h"
#include "runtime/text/jinja/render.h"
#include "runtime/unicode/unicode.h"

namespace foretoken {
namespace {

// The largest published template is under 20 KB.
constexpr std::size_t kMaxSourceBytes = 1 << 20;
// Work a rendering may do. Published templates take about 30 steps a message and touch each byte of
// it a few times (16 bytes are one unit), so this is a hundred times what they need and still under
// a second.
constexpr std::uint64_t kBudget = 10'000'000;
constexpr std::uint64_t kBudgetPerInputByte = 32;

Error to_error(const jinja::TemplateError& error) {
  const ErrorCode code = error.unsupported ? ErrorCode::kUnsupported
                         : error.limit     ? ErrorCode::kOutOfRange
                                           : ErrorCode::kInvalidInput;
  return {code, fmt::format("chat template, line {}: {}", error.line, error.message)};
}

class JinjaChatTemplate final : public ChatTemplate {
 public:
  JinjaChatTemplate(jinja::Body body, std::string bos_token, std::string eos_token)
      : body_(std::move(body)),
        bos_token_(std::move(bos_token)),
        eos_token_(std::move(eos_token)) {}

  Result<std::string> render(const std::vector<ChatMessage>& messages,
                             bool add_generation_prompt) const override {
    try {
      std::uint64_t bytes = 0;
      jinja::List list;
      for (const ChatMessage& message : messages) {
        for (const std::string* text : {&message.role, &message.content})
          if (find_invalid_utf8(*text) != std::string::npos)
            return Error{ErrorCode::kInvalidInput,
                         fmt::format("messages[{}]: not UTF-8", list.size())};
        bytes += message.role.size() + message.content.size() + 64;
        list.push_back(jinja::Map{{{"role", message.role}, {"content", message.content}}});
      }
      // The names that chat templates are published against; those of absent features are none.
      const jinja::Entries context = {
          {"messages", std::move(list)}, {"add_generation_prompt", add_generation_prompt},
          {"bos_token", bos_token_},     {"eos_token", eos_token_},
          {"tools", jinja::None{}},      {"documents", jinja::None{}}};
      return jinja::render(body_, context, kBudget + kBudgetPerInputByte * bytes);
    } catch (const jinja::TemplateError& error) {
      return to_error(error);
    }
  }

 private:
  const jinja::Body body_;
  const std::string bos_token_, eos_token_;
};

}  // namespace

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::parse(std::string_view source,
                                                          std::string bos_token,
                                                          std::string eos_token) {
  if (source.size() > kMaxSourceBytes)
    return Error{ErrorCode::kOutOfRange,
                 fmt::format("chat template: {} bytes found, at most {} wanted", source.size(),
                             kMaxSourceBytes)};
  for (const std::string_view text :
       {source, std::string_view(bos_token), std::string_view(eos_token)})
    if (const auto at = find_invalid_utf8(text); at != std::string_view::npos)
      return Error{ErrorCode::kInvalidInput,
                   fmt::format("chat template: byte {} is not UTF-8", at)};
  try {
    return std::unique_ptr<ChatTemplate>(std::make_unique<JinjaChatTemplate>(
        jinja::parse_template(source), std::move(bos_token), std::move(eos_token)));
  } catch (const jinja::TemplateError& error) {
    return to_error(error);
  }
}

}  // namespace foretoken
