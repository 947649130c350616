#include "runtime/serve/completion_request.h"

#include <gtest/gtest.h>

namespace foretoken {
namespace {

constexpr RequestLimits kLimits{1000, 4096};

ApiError refused(const std::string& body, bool chat = false) {
  auto parsed = parse_completion_request(body, chat, kLimits);
  if (auto* error = std::get_if<ApiError>(&parsed)) return *error;
  ADD_FAILURE() << "was accepted: " << body;
  return {};
}
CompletionRequest accepted(const std::string& body, bool chat = false) {
  auto parsed = parse_completion_request(body, chat, kLimits);
  if (auto* error = std::get_if<ApiError>(&parsed)) {
    ADD_FAILURE() << body << ": " << error->message;
    return {};
  }
  return std::get<CompletionRequest>(std::move(parsed));
}

TEST(CompletionRequest, DefaultsAreOpenAIs) {
  auto r = accepted(R"({"prompt": "hi"})");
  EXPECT_EQ(r.sampling.temperature, 1);
  EXPECT_EQ(r.sampling.top_p, 1);
  EXPECT_EQ(r.n, 1);
  EXPECT_FALSE(r.seed);
  EXPECT_FALSE(r.max_tokens);
  EXPECT_FALSE(r.stream);
  EXPECT_EQ(r.top_logprobs, -1);
  EXPECT_TRUE(r.speculation && r.trace);
  EXPECT_TRUE(r.ignored.empty());
}

TEST(CompletionRequest, EveryFieldArrives) {
  auto r = accepted(R"({"messages": [{"role": "developer", "content": "be brief"},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
      "model": "m", "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": -1,
      "n": 3, "stop": ["x", "y"], "stop_token_ids": [5], "ignore_eos": true, "logprobs": true, "top_logprobs": 4,
      "logit_bias": {"17": -100}, "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1,
      "stream": true, "stream_options": {"include_usage": true}, "user": "u", "metadata": {"domain": "code", "else": 1},
      "foretoken": {"speculation": false, "trace": false}, "cache_prompt": true, "tools": [], "response_format": {"type": "text"},
      "made_up": 1})",
                    true);
  auto& messages = std::get<std::vector<ChatMessage>>(r.prompts.at(0));
  EXPECT_EQ(messages.at(0).role, "system");
  EXPECT_EQ(messages.at(1).content, "ab");
  EXPECT_EQ(r.max_tokens, 7);
  EXPECT_EQ(r.sampling.top_k, 40);
  EXPECT_FLOAT_EQ(r.sampling.min_p, 0.05f);
  EXPECT_EQ(r.seed, ~std::uint64_t{0});
  EXPECT_EQ(r.n, 3);
  EXPECT_EQ(r.stop, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(r.stop_tokens, std::vector<TokenId>{5});
  EXPECT_TRUE(r.ignore_eos && r.stream && r.include_usage);
  EXPECT_EQ(r.top_logprobs, 4);
  EXPECT_EQ(r.sampling.logit_bias.at(0), (std::pair<TokenId, float>{17, -100.f}));
  EXPECT_EQ(r.domain, "code");
  EXPECT_FALSE(r.speculation || r.trace);
  EXPECT_EQ(r.ignored, std::vector<std::string>{"made_up"});
}

TEST(CompletionRequest, PromptForms) {
  EXPECT_EQ(
      std::get<std::vector<TokenId>>(accepted(R"({"prompt": [1, 2, 999]})").prompts.at(0)).size(),
      3u);
  EXPECT_EQ(accepted(R"({"prompt": ["a", "b"]})").prompts.size(), 2u);
  EXPECT_EQ(refused(R"({"prompt": [1, 1000]})").param, "prompt[1]");
  EXPECT_EQ(refused(R"({"prompt": [-1]})").param, "prompt[0]");
  EXPECT_EQ(refused(R"({"prompt": ["a", 1]})").param, "prompt[1]");
  EXPECT_EQ(refused(R"({"prompt": [[1], [2]]})").status, 501);
  EXPECT_EQ(refused(R"({"prompt": []})").status, 400);
  EXPECT_EQ(refused(R"({"prompt": {}})").status, 400);
  EXPECT_EQ(refused(R"({})").param, "prompt");
}

// An empty stream_options must not turn usage on.
TEST(CompletionRequest, EmptyStreamOptions) {
  EXPECT_FALSE(accepted(R"({"prompt": "x", "stream": true, "stream_options": {}})").include_usage);
}

TEST(CompletionRequest, WrongTypesAndRangesNameTheField) {
  struct Case {
    std::string field, value;
  };
  for (const Case& c : std::vector<Case>{{"temperature", "-0.1"},
                                         {"temperature", "\"hot\""},
                                         {"temperature", "1e400"},
                                         {"temperature", "2.5"},
                                         {"top_p", "0"},
                                         {"top_p", "1.01"},
                                         {"top_p", "true"},
                                         {"min_p", "-1"},
                                         {"top_k", "-2"},
                                         {"top_k", "1.5"},
                                         {"max_tokens", "0"},
                                         {"max_tokens", "-5"},
                                         {"max_tokens", "1e30"},
                                         {"max_tokens", "99999999999"},
                                         {"n", "0"},
                                         {"n", "1000000"},
                                         {"seed", "1.5"},
                                         {"seed", "\"1\""},
                                         {"seed", "18446744073709551616"},
                                         {"stop", "[1]"},
                                         {"stop", "[\"a\",\"b\",\"c\",\"d\",\"e\"]"},
                                         {"stop", "\"\""},
                                         {"stop_token_ids", "[1000]"},
                                         {"stream", "1"},
                                         {"stream", "\"true\""},
                                         {"logprobs", "21"},
                                         {"logprobs", "-1"},
                                         {"logit_bias", "[1]"},
                                         {"logit_bias", "{\"x\": 1}"},
                                         {"logit_bias", "{\"1000\": 1}"},
                                         {"presence_penalty", "3"},
                                         {"repetition_penalty", "0"},
                                         {"metadata", "3"},
                                         {"ignore_eos", "0"},
                                         {"model", "7"}}) {
    ApiError error = refused("{\"prompt\": \"x\", \"" + c.field + "\": " + c.value + "}");
    EXPECT_EQ(error.status, 400) << c.field << c.value;
    EXPECT_TRUE(error.param.starts_with(c.field) || error.code == "invalid_json")
        << c.field << c.value << " -> " << error.param << error.message;
  }
  EXPECT_EQ(refused(R"({"prompt": "x", "logit_bias": {"1": 101}})").param, "logit_bias.1");
  EXPECT_EQ(refused(R"({"prompt": "x", "foretoken": {"speculate": true}})").param,
            "foretoken.speculate");
  EXPECT_EQ(refused(R"({"prompt": "x", "metadata": {"domain": "a b"}})").param, "metadata.domain");
}

TEST(CompletionRequest, ChatMessagesAreChecked) {
  EXPECT_EQ(refused(R"({"messages": []})", true).param, "messages");
  EXPECT_EQ(refused(R"({"messages": "hi"})", true).param, "messages");
  EXPECT_EQ(refused(R"({"messages": [1]})", true).param, "messages[0]");
  EXPECT_EQ(refused(R"({"messages": [{"content": "x"}]})", true).param, "messages[0].role");
  EXPECT_EQ(refused(R"({"messages": [{"role": "user"}]})", true).param, "messages[0].content");
  EXPECT_EQ(refused(R"({"messages": [{"role": "wizard", "content": "x"}]})", true).status, 400);
  EXPECT_EQ(
      refused(
          R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]})",
          true)
          .status,
      501);
  EXPECT_EQ(
      refused(R"({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 3})", true).param,
      "top_logprobs");
}

// What would change the answer's meaning is refused, not dropped.
TEST(CompletionRequest, KnownButUnsupportedFailsClosed) {
  for (const char* field :
       {R"("tools": [{"type": "function"}])", R"("tool_choice": "required")",
        R"("response_format": {"type": "json_object"})",
        R"("response_format": {"type": "json_schema", "json_schema": {}})",
        R"("grammar": "root ::= x")", R"("guided_json": {"a": 1})", R"("min_tokens": 5)",
        R"("mirostat": 2)", R"("typical_p": 0.5)", R"("echo": true)", R"("suffix": "x")",
        R"("best_of": 4)", R"("skip_special_tokens": false)"})
    EXPECT_EQ(refused("{\"prompt\": \"x\", " + std::string(field) + "}").status, 501) << field;
  accepted(
      R"({"prompt": "x", "tools": [], "tool_choice": "none", "min_tokens": 0, "typical_p": 1.0, "echo": false, "suffix": null, "best_of": 1})");
}

TEST(CompletionRequest, HostileBodies) {
  EXPECT_EQ(refused("").code, "invalid_json");
  EXPECT_EQ(refused("{").code, "invalid_json");
  EXPECT_EQ(refused("[1]").status, 400);
  EXPECT_EQ(refused("{\"prompt\": \"x\"} trailing").code, "invalid_json");
  EXPECT_EQ(refused("{\"prompt\": NaN}").code, "invalid_json");
  EXPECT_EQ(refused("{\"prompt\": \"\xff\xfe\"}").code, "invalid_json");
  EXPECT_EQ(refused("{\"prompt\": " + std::string(100000, '[')).code, "invalid_json");
  EXPECT_EQ(refused("{\"a\": " + std::string(40, '[') + std::string(40, ']') + "}").code,
            "invalid_json");
}

}  // namespace
}  // namespace foretoken
