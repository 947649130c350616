// The HTTP server and the service over real sockets; only the engine is a fake that can be told to
// misbehave.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <functional>

#include "runtime/serve/choice_seed.h"
#include "runtime/serve/service.h"
#include "tests/unit/serve/fakes.h"
#include "tests/unit/serve/socket_client.h"

namespace foretoken {
namespace {

namespace json = boost::json;

bool eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 1000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

class Http : public ::testing::Test {
 protected:
  void serve(HttpServerOptions http = {}, ServiceOptions options = {}, bool publish = true) {
    http.port = 0;
    service_ = std::make_unique<Service>(std::move(options));
    auto started = HttpServer::start(http, *service_);
    ASSERT_TRUE(started) << started.error().message;
    server_ = std::move(*started);
    if (publish) this->publish();
  }
  void publish() {
    auto backend = std::make_shared<Backend>();
    backend->engine = &engine_;
    backend->tokenizer = &tokenizer_;
    backend->chat_template = &template_;
    backend->names = {"fake", "alias"};
    backend->fingerprint_hex = std::string(64, 'a');
    backend->n_vocab = 258;
    backend->n_ctx = 100;
    service_->publish(backend);
  }
  void TearDown() override {
    if (server_) server_->stop();
    if (service_) service_->stop();
  }
  RawResponse ask(std::string_view method, std::string_view path, std::string_view body = "",
                  std::string_view headers = "") {
    SocketClient client(server_->port());
    client.request(method, path, body, headers);
    return read_response(client);
  }
  static json::object parse(const RawResponse& response) {
    json::error_code code;
    auto value = json::parse(response.body, code);
    EXPECT_FALSE(code) << response.body;
    return value.is_object() ? value.get_object() : json::object{};
  }
  static std::vector<json::object> events(const std::string& body) {
    std::vector<json::object> out;
    std::size_t at = 0;
    while ((at = body.find("data: {", at)) != std::string::npos) {
      std::size_t end = body.find("\n\n", at);
      out.push_back(json::parse(body.substr(at + 6, end - at - 6)).get_object());
      at = end;
    }
    return out;
  }

  FakeEngine engine_;
  ByteTokenizer tokenizer_;
  PlainTemplate template_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(Http, CompletionWithoutStream) {
  serve();
  auto response = ask("POST", "/v1/completions", R"({"prompt": "abc", "seed": 7, "logprobs": 2})");
  EXPECT_EQ(response.status, 200);
  auto body = parse(response);
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["model"], "fake");
  auto& choice = body["choices"].as_array().at(0).as_object();
  EXPECT_EQ(choice["text"], "Hello, world");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["logprobs"].as_object()["tokens"].as_array().size(), 12u);
  EXPECT_EQ(body["usage"].as_object()["prompt_tokens"], 3);
  EXPECT_EQ(body["usage"].as_object()["completion_tokens"], 12);
  EXPECT_EQ(body["foretoken"].as_object()["seed"], 7);
  EXPECT_EQ(body["timings"].as_object()["predicted_n"], 12);
  EXPECT_DOUBLE_EQ(body["foretoken"].as_object()["acceptance_length"].as_double(), 3.0);
}

// Law 4's sibling in the engine: its thread allocates nothing, and the sinks run on it.
TEST_F(Http, NothingIsAllocatedInTheSinks) {
  engine_.answer = std::string(60, 'x');
  engine_.tokens_per_round = 2;
  serve();
  for (const char* body :
       {R"({"prompt": "a"})", R"({"prompt": "a", "stream": true, "n": 3})",
        R"({"prompt": "a", "stream": true, "logprobs": 2})", R"({"prompt": "a", "stop": "xxxxx"})"})
    EXPECT_EQ(ask("POST", "/v1/completions", body).status, 200);
  EXPECT_GT(engine_.emitted(), 300);
  EXPECT_EQ(engine_.allocated_in_sinks, 0);
  // Negative control: what is posted as a closure that holds the event is counted.
  const std::int64_t before = allocations_of_this_thread;
  const std::function<void()> work = [event = EngineEvent{}] { EXPECT_TRUE(event.tokens.empty()); };
  work();
  EXPECT_GT(allocations_of_this_thread, before);
}

TEST_F(Http, ChatStreamFollowsTheContract) {
  serve();
  auto response = ask(
      "POST", "/v1/chat/completions",
      R"({"messages": [{"role": "user", "content": "hi"}], "stream": true, "stream_options": {"include_usage": true}})");
  EXPECT_EQ(response.status, 200);
  EXPECT_NE(response.head.find("text/event-stream"), std::string::npos);
  EXPECT_NE(response.head.find("X-Accel-Buffering: no"), std::string::npos);
  auto chunks = events(response.body);
  ASSERT_GE(chunks.size(), 4u);
  EXPECT_EQ(json::serialize(chunks[0]["choices"].as_array().at(0).as_object()["delta"]),
            R"({"role":"assistant","content":""})");
  std::string text;
  int finished = 0;
  for (std::size_t i = 0; i + 1 < chunks.size(); ++i) {
    EXPECT_EQ(chunks[i]["object"], "chat.completion.chunk");
    EXPECT_TRUE(chunks[i]["usage"].is_null());
    auto& choice = chunks[i]["choices"].as_array().at(0).as_object();
    if (auto* content = choice["delta"].as_object().if_contains("content"))
      text += std::string(content->as_string());
    finished += !choice["finish_reason"].is_null();
  }
  EXPECT_EQ(text, "Hello, world");
  EXPECT_EQ(finished, 1);
  auto& last = chunks.back();
  EXPECT_TRUE(last["choices"].as_array().empty());
  EXPECT_EQ(last["usage"].as_object()["completion_tokens"], 12);
  EXPECT_TRUE(last["foretoken"].as_object()["seed"].is_number());
  EXPECT_TRUE(response.body.ends_with("data: [DONE]\n\n"));
}

TEST_F(Http, StreamWithoutUsageHasNone) {
  serve();
  auto chunks = events(
      ask("POST", "/v1/completions", R"({"prompt": "a", "stream": true, "stream_options": {}})")
          .body);
  ASSERT_FALSE(chunks.empty());
  for (auto& chunk : chunks) EXPECT_FALSE(chunk.contains("usage"));
}

TEST_F(Http, StopStringAcrossRoundsCancelsTheEngine) {
  engine_.answer = "one two three " + std::string(500, 'x');
  serve();
  for (const char* stream : {"false", "true"}) {
    std::size_t before = engine_.cancelled();
    auto response = ask(
        "POST", "/v1/completions",
        std::string(R"({"prompt": "a", "stop": ["o th", "zzz"], "max_tokens": 90, "stream": )") +
            stream + "}");
    std::string text;
    json::value reason, matched;
    if (std::string(stream) == "true") {
      for (auto& chunk : events(response.body)) {
        auto& choice = chunk["choices"].as_array().at(0).as_object();
        text += std::string(choice["text"].as_string());
        if (!choice["finish_reason"].is_null())
          reason = choice["finish_reason"], matched = choice["stop_reason"];
      }
    } else {
      auto body = parse(response);
      auto& choice = body["choices"].as_array().at(0).as_object();
      text = std::string(choice["text"].as_string());
      reason = choice["finish_reason"], matched = choice["stop_reason"];
      EXPECT_EQ(body["usage"].as_object()["completion_tokens"], 10);
    }
    EXPECT_EQ(text, "one tw");
    EXPECT_EQ(reason, "stop");
    EXPECT_EQ(matched, "o th");
    EXPECT_TRUE(
        eventually([&] { return engine_.cancelled() == before + 1 && engine_.open() == 0; }));
  }
}

TEST_F(Http, SeveralChoicesAndPromptsHaveTheirSeeds) {
  serve();
  auto body = parse(ask("POST", "/v1/completions",
                        R"({"prompt": ["a", "bc"], "n": 2, "seed": 5, "max_tokens": 4})"));
  ASSERT_EQ(body["choices"].as_array().size(), 4u);
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_EQ(body["choices"].as_array()[i].as_object()["index"], i);
  EXPECT_EQ(body["choices"].as_array()[0].as_object()["finish_reason"], "length");
  EXPECT_EQ(body["usage"].as_object()["prompt_tokens"], 3);
  auto submitted = engine_.submitted();
  ASSERT_EQ(submitted.size(), 4u);
  EXPECT_EQ(submitted[0].sampling.seed, 5u);
  EXPECT_EQ(submitted[1].sampling.seed, choice_seed(5, 1));
  EXPECT_EQ(submitted[2].sampling.seed, 5u);
  EXPECT_EQ(submitted[2].prompt.size(), 2u);
}

TEST_F(Http, ADrawnSeedIsReturnedAndRepeats) {
  serve();
  auto first = parse(ask("POST", "/v1/completions", R"({"prompt": "a"})"));
  auto second = parse(ask("POST", "/v1/completions", R"({"prompt": "a"})"));
  auto seed = first["foretoken"].as_object()["seed"].to_number<std::uint64_t>();
  EXPECT_NE(seed, second["foretoken"].as_object()["seed"].to_number<std::uint64_t>());
  EXPECT_EQ(engine_.submitted()[0].sampling.seed, seed);
  EXPECT_LT(seed, std::uint64_t{1} << 53);
}

TEST_F(Http, ErrorsHaveTheirStatusAndForm) {
  serve();
  struct Case {
    const char *method, *path, *body;
    int status;
    const char* code;
  };
  for (const Case& c :
       {Case{"POST", "/v1/completions", "{", 400, "invalid_json"},
        Case{"POST", "/v1/nothing", "{}", 404, "unknown_route"},
        Case{"GET", "/v1/completions", "", 405, "method_not_allowed"},
        Case{"POST", "/health", "{}", 405, "method_not_allowed"},
        Case{"POST", "/v1/completions", R"({"prompt": "a", "model": "other"})", 404,
             "model_not_found"},
        Case{"POST", "/v1/chat/completions",
             R"({"messages": [{"role": "user", "content": "refuse me"}]})", 400, nullptr},
        Case{"POST", "/v1/completions", R"({"prompt": "a", "tools": [1]})", 501,
             "unsupported_field"},
        Case{"GET", "/v1/models/none", "", 404, "model_not_found"}}) {
    auto response = ask(c.method, c.path, c.body);
    EXPECT_EQ(response.status, c.status) << c.path << c.body;
    auto body = parse(response);
    auto& error = body["error"].as_object();
    EXPECT_TRUE(error["message"].is_string() && error["type"].is_string() &&
                error.contains("param"));
    if (c.code) {
      EXPECT_EQ(error["code"], c.code) << response.body;
    }
  }
  SocketClient form(server_->port());
  form.send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: "
      "2\r\n\r\n{}");
  EXPECT_EQ(read_response(form).status, 415);
}

TEST_F(Http, AnOverlongPromptIsRefusedWithBothLengths) {
  serve();
  auto response = ask("POST", "/v1/completions", "{\"prompt\": \"" + std::string(150, 'a') + "\"}");
  EXPECT_EQ(response.status, 400);
  auto body = parse(response);
  auto& error = body["error"].as_object();
  EXPECT_EQ(error["code"], "context_length_exceeded");
  EXPECT_EQ(error["n_prompt_tokens"], 150);
  EXPECT_EQ(error["n_ctx"], 100);
  EXPECT_EQ(
      parse(ask("POST", "/v1/completions", R"({"prompt": "abcd", "max_tokens": 97})"))["error"]
          .as_object()["code"],
      "context_length_exceeded");
  EXPECT_EQ(ask("POST", "/v1/completions", R"({"prompt": "abcd", "max_tokens": 96})").status, 200);
  EXPECT_EQ(ask("POST", "/v1/completions", R"({"prompt": "abcd"})").status, 200);
  EXPECT_EQ(engine_.submitted().back().max_tokens, 96) << "the rest of the context";
}

TEST_F(Http, AFullQueueIs429WithRetryAfter) {
  engine_.max_open = 1;
  engine_.hold = true;
  serve();
  SocketClient first(server_->port());
  first.request("POST", "/v1/completions", R"({"prompt": "a"})");
  ASSERT_TRUE(eventually([&] { return engine_.open() == 1; }));
  auto response = ask("POST", "/v1/completions", R"({"prompt": "a", "stream": true})");
  EXPECT_EQ(response.status, 429);
  EXPECT_NE(response.head.find("Retry-After:"), std::string::npos);
  // With n = 2 one choice would fit... none may stay behind.
  engine_.max_open = 2;
  EXPECT_EQ(ask("POST", "/v1/completions", R"({"prompt": "a", "n": 2})").status, 429);
  EXPECT_TRUE(eventually([&] { return engine_.open() == 1; }));
  engine_.hold = false;
  EXPECT_EQ(read_response(first).status, 200);
}

TEST_F(Http, AVanishedClientIsCancelledWhereverItsRequestIs) {
  engine_.hold = true;  // queued or mid-prefill
  serve();
  std::size_t expected = 0;
  for (const char* stream : {"false", "true"}) {
    SocketClient client(server_->port());
    client.request("POST", "/v1/completions",
                   std::string(R"({"prompt": "a", "n": 2, "stream": )") + stream + "}");
    ASSERT_TRUE(eventually([&] { return engine_.open() == 2; }));
    client.close();
    expected += 2;
    EXPECT_TRUE(eventually([&] { return engine_.cancelled() == expected && engine_.open() == 0; }))
        << stream;
  }
  engine_.hold = false;  // mid-stream
  engine_.answer = std::string(90, 'x');
  engine_.round_ms = 20;
  SocketClient client(server_->port());
  client.request("POST", "/v1/completions", R"({"prompt": "a", "stream": true})");
  EXPECT_NE(client.read("data: {").find("data: {"), std::string::npos);
  client.close();
  EXPECT_TRUE(
      eventually([&] { return engine_.cancelled() == expected + 1 && engine_.open() == 0; }));
  EXPECT_TRUE(eventually([&] { return server_->open_exchanges() == 0; }));
}

TEST_F(Http, ASlowReaderIsCancelledNotBuffered) {
  HttpServerOptions http;
  http.max_unsent_bytes = 64 << 10;
  engine_.answer = std::string(1 << 20, 'x');
  engine_.tokens_per_round = 64;
  engine_.round_ms = 0;
  serve(http);
  auto backend = std::make_shared<Backend>();
  backend->engine = &engine_;
  backend->tokenizer = &tokenizer_;
  backend->names = {"fake"};
  backend->n_vocab = 258;
  backend->n_ctx = 100 << 20;
  service_->publish(backend);
  SocketClient client(server_->port(), 4096);
  client.request(
      "POST", "/v1/completions",
      R"({"prompt": "a", "stream": true, "ignore_eos": true, "max_tokens": 90000000, "logprobs": 5})");
  EXPECT_TRUE(eventually([&] { return engine_.cancelled() == 1 && engine_.open() == 0; }));
  EXPECT_LT(engine_.emitted(),
            1 << 20);  // the kernel's socket buffers and ours, not the whole answer
}

TEST_F(Http, EngineErrorsEndTheAnswer) {
  engine_.fail = true;
  serve();
  auto response = ask("POST", "/v1/completions", R"({"prompt": "a"})");
  EXPECT_EQ(response.status, 500);
  EXPECT_EQ(parse(response)["error"].as_object()["message"], "it broke");
  auto stream = ask("POST", "/v1/completions", R"({"prompt": "a", "stream": true})");
  EXPECT_EQ(stream.status, 200);
  ASSERT_EQ(events(stream.body).size(), 1u);
  EXPECT_TRUE(events(stream.body)[0].contains("error"));
  EXPECT_EQ(stream.body.find("[DONE]"), std::string::npos);
}

TEST_F(Http, LongPrefillKeepsTheStreamAlive) {
  HttpServerOptions http;
  http.ping_interval_s = 0.05;
  engine_.hold = true;
  serve(http);
  SocketClient client(server_->port());
  client.request("POST", "/v1/completions", R"({"prompt": "a", "stream": true})");
  EXPECT_NE(client.read(": keep-alive\n\n").find(": keep-alive"), std::string::npos);
  engine_.hold = false;
  EXPECT_NE(client.read("[DONE]").find("Hel"), std::string::npos);
}

TEST_F(Http, HealthTellsLoadingStalledAndDraining) {
  ServiceOptions options;
  options.stall_after_s = 5;
  serve({}, std::move(options), false);
  EXPECT_EQ(ask("GET", "/health").status, 503);
  EXPECT_EQ(ask("GET", "/health/live").status, 200);
  EXPECT_EQ(ask("POST", "/v1/completions", R"({"prompt": "a"})").status, 503);
  EXPECT_EQ(ask("GET", "/metrics").status, 200);
  publish();
  EXPECT_EQ(ask("GET", "/health").status, 200);
  EXPECT_EQ(ask("HEAD", "/health").status, 200);
  engine_.heartbeat = 6;
  EXPECT_EQ(ask("GET", "/health").status, 503);
  EXPECT_EQ(ask("GET", "/health/live").status, 200);
  engine_.heartbeat = 0;
  service_->drain();
  EXPECT_EQ(ask("GET", "/health").status, 503);
  auto refused = ask("POST", "/v1/completions", R"({"prompt": "a"})");
  EXPECT_EQ(refused.status, 503);
  EXPECT_NE(refused.head.find("Retry-After"), std::string::npos);
}

TEST_F(Http, DrainingFinishesWhatIsInFlight) {
  engine_.round_ms = 20;
  serve();
  SocketClient idle(server_->port());
  idle.request("GET", "/health");
  EXPECT_EQ(read_response(idle).status, 200);
  SocketClient client(server_->port());
  client.request("POST", "/v1/completions", R"({"prompt": "a", "stream": true})");
  client.read("data: {");
  service_->drain();
  server_->drain();
  EXPECT_EQ(idle.read("", 5000), "");
  EXPECT_TRUE(idle.closed_by_peer());
  EXPECT_EQ(ask("POST", "/v1/completions", R"({"prompt": "a"})").status, 503);
  EXPECT_NE(client.read().find("[DONE]"), std::string::npos);
  EXPECT_TRUE(client.closed_by_peer());
  EXPECT_TRUE(eventually([&] { return server_->open_connections() == 0; }));
}

TEST_F(Http, StoppingCutsWhatIsLeft) {
  engine_.hold = true;
  serve();
  SocketClient client(server_->port());
  client.request("POST", "/v1/completions", R"({"prompt": "a"})");
  ASSERT_TRUE(eventually([&] { return engine_.open() == 1; }));
  server_->stop();
  client.read();
  EXPECT_TRUE(client.closed_by_peer());
  EXPECT_EQ(engine_.cancelled(), 1u);
}

TEST_F(Http, ApiKeys) {
  ServiceOptions options;
  options.api_keys = ApiKeys::from_list({"secret-1", "secret-2"});
  serve({}, std::move(options));
  EXPECT_EQ(ask("GET", "/v1/models").status, 401);
  EXPECT_EQ(ask("GET", "/stats").status, 401);
  EXPECT_EQ(ask("GET", "/health").status, 200);
  EXPECT_EQ(ask("GET", "/v1/models", "", "Authorization: Bearer secret-3\r\n").status, 401);
  EXPECT_EQ(ask("GET", "/v1/models", "", "Authorization: Bearer secret-\r\n").status, 401);
  EXPECT_EQ(ask("GET", "/v1/models", "", "Authorization: Basic secret-1\r\n").status, 401);
  EXPECT_EQ(ask("GET", "/v1/models", "", "Authorization: Bearer secret-2\r\n").status, 200);
  EXPECT_EQ(
      ask("POST", "/v1/completions", R"({"prompt": "a"})", "Authorization: bearer secret-1\r\n")
          .status,
      200);
  auto submitted = engine_.submitted();
  ASSERT_EQ(submitted.size(), 1u);
  EXPECT_TRUE(submitted[0].key_id.starts_with("key-"));
  EXPECT_EQ(submitted[0].domain, submitted[0].key_id);
}

TEST_F(Http, LimitsOnWhatIsRead) {
  HttpServerOptions http;
  http.max_body_bytes = 10000;
  http.max_header_bytes = 2000;
  http.header_timeout_s = 0.2;
  http.body_timeout_s = 0.2;
  http.idle_timeout_s = 0.3;
  serve(http);
  {
    SocketClient big(server_->port());  // refused by its length alone
    big.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n");
    EXPECT_EQ(read_response(big).status, 413);
  }
  {
    SocketClient chunked(server_->port());
    chunked.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    std::string piece = "1000\r\n" + std::string(4096, 'x') + "\r\n";
    for (int i = 0; i < 4; ++i) chunked.send(piece);
    EXPECT_EQ(read_response(chunked).status, 413);
  }
  {
    SocketClient flood(server_->port());
    flood.send("GET /health HTTP/1.1\r\nHost: x\r\n");
    for (int i = 0; i < 100; ++i)
      flood.send("X-" + std::to_string(i) + ": " + std::string(50, 'y') + "\r\n");
    EXPECT_EQ(read_response(flood).status, 431);
  }
  {
    SocketClient slow(server_->port());  // slowloris
    slow.send("GET /health HTTP/1.1\r\nHo");
    EXPECT_EQ(read_response(slow).status, 408);
  }
  {
    SocketClient slow(server_->port());
    slow.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
    EXPECT_EQ(read_response(slow).status, 408);
  }
  {
    SocketClient idle(server_->port());
    EXPECT_EQ(idle.read(), "");
    EXPECT_TRUE(idle.closed_by_peer());
  }
  {
    SocketClient garbage(server_->port());
    garbage.send("\x16\x03\x01\x02 not http at all\r\n\r\n");
    EXPECT_EQ(read_response(garbage).status, 400);
  }
  EXPECT_EQ(ask("GET", "/health").status, 200);
  EXPECT_TRUE(eventually([&] { return server_->open_connections() == 0; }));
}

TEST_F(Http, ConnectionLimit) {
  HttpServerOptions http;
  http.max_connections = 2;
  serve(http);
  SocketClient a(server_->port()), b(server_->port());
  a.request("GET", "/health");
  b.request("GET", "/health");
  EXPECT_EQ(read_response(a).status, 200);
  EXPECT_EQ(read_response(b).status, 200);
  SocketClient c(server_->port());
  EXPECT_EQ(read_response(c).status, 503);
  a.close();
  EXPECT_TRUE(eventually([&] { return ask("GET", "/health").status == 200; }));
}

TEST_F(Http, PipelinedRequestsAreAnsweredInOrder) {
  serve();
  SocketClient client(server_->port());
  std::string body = R"({"prompt": "a", "max_tokens": 5})";
  std::string post =
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) +
      "\r\n\r\n" + body;
  client.send(post + "GET /version HTTP/1.1\r\nHost: x\r\n\r\n" + post +
              "GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  std::string all = client.read();
  EXPECT_TRUE(client.closed_by_peer());
  auto first = all.find("\"Hello\""), second = all.find("\"version\""),
       third = all.find("\"Hello\"", second), last = all.find("unknown_route");
  EXPECT_TRUE(first < second && second < third && third < last && last != std::string::npos) << all;
}

TEST_F(Http, KeepAliveServesManyRequests) {
  serve();
  SocketClient client(server_->port());
  for (int i = 0; i < 20; ++i) {
    client.request("POST", "/v1/completions",
                   R"({"prompt": "a", "max_tokens": 2, "stream": true})");
    ASSERT_NE(client.read("0\r\n\r\n").find("[DONE]"), std::string::npos) << i;
  }
  EXPECT_EQ(server_->open_connections(), 1);
}

TEST_F(Http, Http10GetsNoChunks) {
  serve();
  SocketClient client(server_->port());
  std::string body = R"({"prompt": "a", "stream": true})";
  client.send("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(body.size()) +
              "\r\n\r\n" + body);
  std::string all = client.read();
  EXPECT_TRUE(client.closed_by_peer());
  EXPECT_EQ(all.find("chunked"), std::string::npos);
  EXPECT_TRUE(all.ends_with("data: [DONE]\n\n")) << all;
}

TEST_F(Http, ExpectContinue) {
  serve();
  SocketClient client(server_->port());
  std::string body = R"({"prompt": "a"})";
  client.send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n");
  EXPECT_EQ(client.read("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send(body);
  EXPECT_EQ(read_response(client).status, 200);
}

TEST_F(Http, Cors) {
  serve();
  auto preflight = ask("OPTIONS", "/v1/chat/completions", "",
                       "Origin: http://a\r\nAccess-Control-Request-Method: POST\r\n");
  EXPECT_EQ(preflight.status, 204);
  EXPECT_NE(preflight.head.find("Access-Control-Allow-Origin: *"), std::string::npos);
  EXPECT_NE(preflight.head.find("Access-Control-Allow-Headers: Authorization"), std::string::npos);
}

TEST_F(Http, TokenizeAndBack) {
  serve();
  EXPECT_EQ(json::serialize(parse(ask("POST", "/tokenize", R"({"content": "ab"})"))["tokens"]),
            "[97,98]");
  EXPECT_EQ(parse(ask("POST", "/tokenize", R"({"prompt": "ab"})"))["count"], 2);
  EXPECT_EQ(parse(ask("POST", "/tokenize",
                      R"({"messages": [{"role": "user", "content": "x"}]})"))["count"],
            18);
  EXPECT_EQ(json::serialize(parse(
                ask("POST", "/tokenize", R"({"content": "a", "with_pieces": true})"))["tokens"]),
            R"([{"id":97,"piece":"a"}])");
  EXPECT_EQ(parse(ask("POST", "/detokenize", R"({"tokens": [104, 105]})"))["content"], "hi");
  EXPECT_EQ(ask("POST", "/detokenize", R"({"tokens": [999]})").status, 400);
  EXPECT_EQ(ask("POST", "/tokenize", R"({"content": 5})").status, 400);
}

TEST_F(Http, MetricsAndStatsCarryTheEnginesFigures) {
  serve();
  EngineStats stats;
  stats.uptime_s = 12;
  stats.acceptance.drafting_rounds = 10;
  stats.acceptance.drafted = 40;
  stats.acceptance.accepted = 20;
  stats.acceptance.drafted_at[0] = 10;
  stats.acceptance.accepted_at[0] = 9;
  stats.acceptance.drafted_at[1] = 10;
  stats.acceptance.accepted_at[1] = 6;
  stats.speedup = Interval{1.5, 1.4, 1.6, 100, 20};
  stats.by_domain["quo\"te"] = stats.acceptance;
  engine_.set_stats(stats);
  ask("POST", "/v1/completions", R"({"prompt": "a"})");
  std::string text = ask("GET", "/metrics").body;
  for (const char* line :
       {"foretoken:spec_decode_num_drafts_total{model_name=\"model\",engine=\"0\"} 10",
        "foretoken:spec_decode_num_accepted_tokens_total{model_name=\"model\",engine=\"0\"} 20",
        "foretoken:spec_decode_num_accepted_tokens_per_pos_total{model_name=\"model\",engine=\"0\","
        "position=\"1\"} 6",
        "foretoken:time_to_first_token_seconds_count{model_name=\"model\"} 1",
        "foretoken:e2e_request_latency_seconds_count{model_name=\"model\"} 1",
        "finished_reason=\"stop\"", "foretoken:build_info"})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text.substr(0, 3000);
  // Each counter's HELP says what is counted and since when.
  int counters = 0;
  for (std::size_t at = text.find("# HELP "); at != std::string::npos;
       at = text.find("# HELP ", at + 1)) {
    const std::string help = text.substr(at + 7, text.find('\n', at) - at - 7);
    const std::string name = help.substr(0, help.find(' '));
    if (text.find("# TYPE " + name + " counter") == std::string::npos) continue;
    ++counters;
    EXPECT_NE(help.find("since start"), std::string::npos) << help;
  }
  EXPECT_GT(counters, 15);
  auto body = parse(ask("GET", "/stats?history=1"));
  EXPECT_EQ(body["schema"], "foretoken.stats/1");
  EXPECT_EQ(body["acceptance"]
                .as_object()["overall"]
                .as_object()["acceptance_length"]
                .to_number<double>(),
            3.0);
  EXPECT_EQ(json::serialize(body["speedup"].as_object()["overall"].as_object()["ci95"]),
            json::serialize(json::array{1.4, 1.6}));
  EXPECT_TRUE(body["history"].is_array());
  EXPECT_TRUE(body["speedup"].as_object()["last_minute"].is_null());
}

TEST_F(Http, TheDashboardIsSelfContained) {
  serve();
  auto page = ask("GET", "/dashboard");
  EXPECT_EQ(page.status, 200);
  EXPECT_NE(page.body.find("stats?history=1"), std::string::npos);
  for (const char* external : {"http://", "https://", "src=\"//"}) {
    auto at = page.body.find(external);
    // the SVG name space is a name, not a resource
    while (at != std::string::npos && page.body.compare(at, 18, "http://www.w3.org/") == 0)
      at = page.body.find(external, at + 1);
    EXPECT_EQ(at, std::string::npos);
  }
}

TEST_F(Http, DomainsAreBounded) {
  engine_.answer = "x";
  serve();
  SocketClient client(server_->port());
  for (int i = 0; i < 300; ++i) {
    client.request(
        "POST", "/v1/completions",
        "{\"prompt\": \"a\", \"max_tokens\": 1, \"stream\": true, \"metadata\": {\"domain\": \"d" +
            std::to_string(i) + "\"}}");
    client.read("0\r\n\r\n");
  }
  std::set<std::string> domains;
  for (const auto& request : engine_.submitted()) domains.insert(request.domain);
  EXPECT_LE(domains.size(), 257u);
  EXPECT_TRUE(domains.count("other"));
}

}  // namespace
}  // namespace foretoken
