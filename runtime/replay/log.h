// Traffic logs: what was asked of a server and when, read into OpenAI request bodies. Formats, told
// apart by their content, a line at a time where they are JSONL:
//   foretoken's own    {"timestamp": ms, "body": {...}}, also with "payload" for "body"
//   OpenAI batch       {"custom_id", "method": "POST", "url": "/v1/...", "body": {...}}
//   Mooncake traces    {"timestamp": ms, "input_length", "output_length", "hash_ids"}: prompts of
//                      words are made up, equal hash ids giving equal text; or with "messages",
//                      "text_input" or "payload"
//   vLLM custom        {"prompt": "...", "output_tokens"?: n}
//   ShareGPT           [{"conversations": [{"from": "human"|"gpt", "value"}]}]
//   Azure CSV          TIMESTAMP,ContextTokens,GeneratedTokens: prompts of that many words are
//                      made up
// Logs are parsed as hostile input: an error names the file, the line and the field.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken {

struct LoggedRequest {
  std::optional<double> timestamp_ms;  // since the log's first request
  std::string path;                    // "/v1/chat/completions" or "/v1/completions"
  boost::json::object body;
  std::string domain;  // body.metadata.domain, or ""
};

// `name` is for messages. Requests come in the order of their timestamps (stable for equal ones).
Result<std::vector<LoggedRequest>> parse_traffic_log(std::string_view text,
                                                     const std::string& name);
Result<std::vector<LoggedRequest>> read_traffic_log(const std::string& path);

}  // namespace foretoken
