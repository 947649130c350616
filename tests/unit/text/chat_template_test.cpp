// Limits and errors of chat templates; tests/conformance compares what they render with jinja2.
#include "runtime/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace foretoken {
namespace {

using ::testing::HasSubstr;

const std::vector<ChatMessage> kTalk = {
    {"system", "Be brief."}, {"user", "Hi\n"}, {"assistant", "Hello"}, {"user", "Bye"}};

Result<std::string> render(std::string_view source,
                           const std::vector<ChatMessage>& messages = kTalk) {
  auto parsed = ChatTemplate::parse(source, "<s>", "</s>");
  if (!parsed) return parsed.error();
  return (*parsed)->render(messages, true);
}
std::string text(std::string_view source) {
  const auto out = render(source);
  return out.ok() ? *out : "error: " + out.error().message;
}

TEST(ChatTemplate, RendersAConversation) {
  EXPECT_EQ(text("{{ bos_token }}{% for m in messages %}\n<{{ m.role }}>{{ m['content'] | trim "
                 "}}\n{% endfor %}\n"
                 "{% if add_generation_prompt %}<assistant>{% endif %}"),
            "<s><system>Be brief.\n<user>Hi\n<assistant>Hello\n<user>Bye\n<assistant>");
}

TEST(ChatTemplate, MessagesAreTextNotTemplate) {
  EXPECT_EQ(*render("{{ messages[0].content }}", {{"user", "{{ 1 + 1 }}{% raw %}"}}),
            "{{ 1 + 1 }}{% raw %}");
}

TEST(ChatTemplate, ErrorsNameTheirLine) {
  EXPECT_THAT(text("a\n{{ b."), HasSubstr("line 2"));
  EXPECT_THAT(text("\n\n{{ raise_exception('no system here') }}"),
              HasSubstr("line 3: no system here"));
  EXPECT_THAT(text("\n{{ 'a' | wordwrap }}"),
              HasSubstr("line 2: filter 'wordwrap': not supported"));
  EXPECT_THAT(text("{% for m in messages %}\n\n{{ m.a.b }}{% endfor %}"), HasSubstr("line 3"));
  const auto unsupported = ChatTemplate::parse("{% include 'x' %}", "", "");
  ASSERT_FALSE(unsupported.ok());
  EXPECT_EQ(unsupported.error().code, ErrorCode::kUnsupported);
  EXPECT_FALSE(ChatTemplate::parse("\xff", "", "").ok());
  EXPECT_FALSE(render("{{ messages[0].content }}", {{"user", "\xff"}}).ok());
}

TEST(ChatTemplate, TemplatesCannotTakeTheMachine) {
  for (const char* hostile : {
           "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
           "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% "
           "endfor %}",
           "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% "
           "endfor %}",
           "{{ 'x' * 9223372036854775807 }}",
           "{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}",
           "{{ ('x' * 1000000)|join('y' * 1000000) }}",
           "{% for i in range(100000) %}{{ 'x' * 1000000 }}{% endfor %}",
           "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
           "{% set ns = namespace(s=[]) %}{% for i in range(100000) %}{% set ns.s = [ns.s] %}{% "
           "endfor %}{{ ns.s }}",
           "{{ ('a\\n' * 1000000)|indent('x' * 1000000) }}",
           "{{ range(99999999999) }}",
           "{% set ns = namespace(n=9223372036854775807) %}{{ ns.n + 1 }}",
           "{{ -9223372036854775807 - 2 }}",
       }) {
    const auto out = render(hostile);
    EXPECT_FALSE(out.ok()) << hostile;
  }
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += '(';
  EXPECT_FALSE(render("{{ " + deep).ok());
  EXPECT_FALSE(render("{{ 1" + std::string(100'000, '+') + "1 }}").ok());
  std::string blocks, dots = "{{ a", filters = "{{ 'a'", nots = "{{ ";
  for (int i = 0; i < 100'000; ++i) {
    blocks += "{% if true %}";
    dots += ".a";
    filters += "|trim";
    nots += "not ";
  }
  for (const std::string& source : {blocks, dots + " }}", filters + " }}", nots + "1 }}"})
    EXPECT_FALSE(render(source).ok());
  EXPECT_FALSE(render(std::string(2 << 20, 'x')).ok());
}

TEST(ChatTemplate, KeptLoopsAndNamespacesStayValid) {
  EXPECT_EQ(
      text(
          "{% set ns = namespace(l=none) %}{% for m in messages %}{% set ns.l = loop %}{% endfor %}"
          "{{ ns.l.index }} {{ ns.l.previtem.role }}"),
      "4 assistant");
  EXPECT_EQ(text("{% set ns = namespace(x=1) %}{% set ns.me = [ns] %}{{ ns.me[0].x }}"), "1");
  EXPECT_THAT(text("{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me }}"),
              HasSubstr("not supported"));
  EXPECT_THAT(text("{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me | tojson }}"),
              HasSubstr("JSON"));
}

TEST(ChatTemplate, LongConversationsFitTheBudget) {
  std::vector<ChatMessage> talk;
  for (int i = 0; i < 2000; ++i)
    talk.push_back({i % 2 ? "assistant" : "user", std::string(2000, 'x')});
  const auto out = render(
      "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}",
      talk);
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_GT(out->size(), 4'000'000u);
}

TEST(ChatTemplate, MutatedTemplatesNeverCrash) {
  const std::string good =
      "{{- bos_token }}{%- set ns = namespace(n=0, s=[]) -%}{% macro tag(r, x='y') %}<{{ r|upper "
      "}}{{ x }}>{% endmacro %}\n"
      "{% for m in messages[::-1] if m.role != 'tool' %}\n  {%- if loop.first and m['content'] is "
      "string %}{{ tag(m.role) }}\n"
      "  {%- elif not m.content.startswith(('a', \"b\")) or m.x is defined %}{{ "
      "m.content.split('\\n')[-1] | replace('a', 'b') | trim }}"
      "{% else %}{{ {'a': [1, 2.5, none], 'b': {}} | tojson(indent=2) }}{% endif %}{% set ns.n = "
      "ns.n + loop.index * 2 // 3 %}\n"
      "{% set ns.s = ns.s + [m.role ~ ns.n] %}{% endfor %}{# note #}{{ ns.s | join(', ') }}{{ 'x' "
      "if ns.n > 3 else -ns.n }}"
      "{% raw %}{{ }}{% endraw %}{% set block %}z{% endset %}{{ block[0:1] }}{% for k, v in {'k': "
      "1}.items() %}{{ k }}{{ v }}{% endfor %}";
  ASSERT_TRUE(render(good).ok()) << render(good).error().message;
  const std::string pieces[] = {
      "{%",          "%}",         "{{",       "}}",          "-",    "'",
      "(",           ")",          "[",        "]",           "|",    ".",
      "loop",        "ns",         " in ",     " is ",        "none", "{% endfor %}",
      "{% endif %}", "{% else %}", "messages", "99999999999", "\\",   "\xC3\xA9",
      "if ",         "for "};
  std::mt19937 random(23);
  int rendered = 0, refused = 0;
  for (int i = 0; i < 6000; ++i) {
    std::string source = good;
    for (int n = 1 + int(random() % 3); n > 0; --n) {
      const std::size_t at = random() % source.size();
      switch (random() % 4) {
        case 0:
          source.erase(at, 1 + random() % 6);
          break;
        case 1:
          source.insert(at, pieces[random() % std::size(pieces)]);
          break;
        case 2:
          source.insert(at, source.substr(random() % source.size(), random() % 30));
          break;
        default:
          source[at] = static_cast<char>(random() % 128);
      }
      if (source.empty()) source = " ";
    }
    ++(render(source).ok() ? rendered : refused);
  }
  EXPECT_GT(rendered, 200);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace foretoken
