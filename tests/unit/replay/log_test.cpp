#include "runtime/replay/log.h"

#include <gmock/gmock.h>

namespace foretoken {
namespace {

using ::testing::HasSubstr;

std::vector<LoggedRequest> parse(std::string_view text) {
  auto log = parse_traffic_log(text, "x.jsonl");
  EXPECT_TRUE(log.ok()) << (log ? "" : log.error().message);
  return log ? std::move(*log) : std::vector<LoggedRequest>{};
}
std::string error_of(std::string_view text) {
  auto log = parse_traffic_log(text, "x.jsonl");
  return log ? "no error" : log.error().message;
}
std::string first_message(const LoggedRequest& r) {
  return std::string(r.body.at("messages").at(0).at("content").as_string());
}

TEST(TrafficLog, OwnFormatSortsByTimeAndKeepsTheBody) {
  const auto log = parse(
      "{\"timestamp\": 2500, \"body\": {\"messages\": [{\"role\":\"user\",\"content\":\"b\"}], "
      "\"seed\": 7, \"metadata\": {\"domain\": \"code\"}}}\r\n"
      "\n"
      "{\"timestamp\": 1000, \"body\": {\"messages\": [{\"role\":\"user\",\"content\":\"a\"}]}}");
  ASSERT_EQ(log.size(), 2u);
  EXPECT_EQ(first_message(log[0]), "a");
  EXPECT_EQ(log[0].timestamp_ms, 0.0);
  EXPECT_EQ(log[1].timestamp_ms, 1500.0);
  EXPECT_EQ(log[1].domain, "code");
  EXPECT_EQ(log[1].body.at("seed").as_int64(), 7);
  EXPECT_EQ(log[1].path, "/v1/chat/completions");
}

TEST(TrafficLog, OpenAiBatchLines) {
  const auto log = parse(
      R"({"custom_id":"1","method":"POST","url":"/v1/completions","body":{"prompt":"once","max_tokens":5}})");
  ASSERT_EQ(log.size(), 1u);
  EXPECT_EQ(log[0].path, "/v1/completions");
  EXPECT_FALSE(log[0].timestamp_ms.has_value());
  EXPECT_THAT(error_of(R"({"url":"/v1/embeddings","body":{"input":"x"}})"),
              HasSubstr("/v1/embeddings"));
}

TEST(TrafficLog, MooncakeSharesTextByHashId) {
  const auto log = parse(
      "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [46, 47]}\n"
      "{\"timestamp\": 9, \"input_length\": 700, \"output_length\": 8, \"hash_ids\": [46, 48]}\n");
  ASSERT_EQ(log.size(), 2u);
  const std::string a = first_message(log[0]), b = first_message(log[1]);
  const auto words = [](const std::string& s) { return std::count(s.begin(), s.end(), ' '); };
  EXPECT_EQ(words(a), 600);
  EXPECT_EQ(words(b), 700);
  std::size_t shared = 0;
  while (shared < a.size() && a[shared] == b[shared]) ++shared;
  EXPECT_GE(words(a.substr(0, shared)), 512);
  EXPECT_LT(words(a.substr(0, shared)), 530);
  EXPECT_EQ(log[1].body.at("max_tokens").as_int64(), 8);
}

TEST(TrafficLog, MooncakeSupersets) {
  const auto log = parse(
      "{\"timestamp\": 0, \"session_id\": \"s\", \"messages\": "
      "[{\"role\":\"user\",\"content\":\"hi\"}], \"output_length\": 12}\n"
      "{\"timestamp\": 1, \"text_input\": \"plain\"}\n"
      "{\"timestamp\": 2, \"payload\": {\"messages\": [], \"temperature\": 0.5}}\n");
  ASSERT_EQ(log.size(), 3u);
  EXPECT_EQ(log[0].body.at("max_tokens").as_int64(), 12);
  EXPECT_FALSE(log[0].body.contains("session_id"));
  EXPECT_FALSE(log[0].body.contains("timestamp"));
  EXPECT_EQ(first_message(log[1]), "plain");
  EXPECT_EQ(log[2].body.at("temperature").as_double(), 0.5);
}

TEST(TrafficLog, VllmCustomShareGptAndAzure) {
  const auto custom = parse(R"({"prompt": "Once", "output_tokens": 9})");
  EXPECT_EQ(custom.at(0).path, "/v1/completions");
  EXPECT_EQ(custom.at(0).body.at("max_tokens").as_int64(), 9);

  const auto shared = parse(
      R"([{"id":"a","conversations":[{"from":"gpt","value":"skipped"},{"from":"human","value":"Who?"},{"from":"gpt","value":"12345678"}]}])");
  EXPECT_EQ(first_message(shared.at(0)), "Who?");
  EXPECT_EQ(shared.at(0).body.at("max_tokens").as_int64(), 3);

  const auto azure = parse(
      "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5000000,374,44\n2023-11-16 "
      "18:16:01.0000000,10,109\n");
  ASSERT_EQ(azure.size(), 2u);
  EXPECT_EQ(azure[1].timestamp_ms, 14500.0);
  EXPECT_EQ(azure[0].body.at("max_tokens").as_int64(), 44);
}

TEST(TrafficLog, HostileInputIsANamedError) {
  EXPECT_THAT(error_of(""), HasSubstr("empty"));
  EXPECT_THAT(error_of("{\"body\": {\"messages\": []}}\n{\"body\": 3}"),
              HasSubstr("line 2: body: an object was wanted"));
  EXPECT_THAT(error_of("{\"messages\": []}\n{oops"), HasSubstr("line 2: not JSON"));
  EXPECT_THAT(error_of("[1]"), HasSubstr("entry 1"));
  EXPECT_THAT(error_of("{\"input_length\": 1e18, \"timestamp\": 0}"), HasSubstr("input_length"));
  EXPECT_THAT(error_of("{\"input_length\": -1}"), HasSubstr("input_length"));
  EXPECT_THAT(error_of("{\"timestamp\": \"now\", \"messages\": []}"), HasSubstr("timestamp"));
  EXPECT_THAT(error_of("{\"body\": {\"messages\": \"no\"}}"), HasSubstr("messages"));
  EXPECT_THAT(error_of("{\"x\": 1}"), HasSubstr("none of"));
  EXPECT_THAT(error_of("TIMESTAMP,ContextTokens\nyesterday"), HasSubstr("line 2"));
  EXPECT_THAT(error_of("[{\"conversations\": [{\"from\": \"gpt\", \"value\": \"x\"}]}]"),
              HasSubstr("no turn of a human"));
  EXPECT_THAT(error_of(std::string(5000, '[')), HasSubstr("not JSON"));
}

}  // namespace
}  // namespace foretoken
