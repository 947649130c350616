// A whole server in this process, on a small random model and real sockets: started, asked, stopped
// and started again, and what happens to requests that are open when it stops.
#include "runtime/server/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <chrono>
#include <filesystem>
#include <thread>

#include "runtime/replay/http_client.h"
#include "tests/support/gguf_writer.h"

namespace foretoken {
namespace {

namespace json = boost::json;
using ::testing::HasSubstr;

struct Answer {
  int status = 0;  // 0: none came, or not all of it
  json::value body;
};

class ServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::write_tiny_model(folder_.file("tiny.gguf"), {});
    options_.model = folder_.file("tiny.gguf");
    options_.state_dir = folder_.file("state");
    options_.calibration = false;
    options_.engine.threads = 1;
    options_.engine.max_model_len = 2048;
    options_.http.port = 0;
  }
  static Answer ask(int port, const std::string& path, const std::string* body = nullptr) {
    HttpClient client({"127.0.0.1", std::to_string(port), ""}, "", 60);
    std::string text;
    const auto response = client.call(path, body, [&](std::string_view piece) { text += piece; });
    json::error_code broken;
    Answer answer;
    if (response) answer = {response->status, json::parse(text, broken)};
    if (broken) answer.status = 0;
    return answer;
  }
  static Answer complete(int port, int max_tokens) {
    const std::string body = json::serialize(json::object{{"prompt", "abcabcabcabc"},
                                                          {"max_tokens", max_tokens},
                                                          {"temperature", 0},
                                                          {"ignore_eos", true}});
    return ask(port, "/v1/completions", &body);
  }
  static std::string text_of(const Answer& answer) {
    return answer.status == 200
               ? std::string(answer.body.at("choices").at(0).at("text").as_string())
               : "";
  }

  testing::TemporaryDirectory folder_;
  Server::Options options_;
};

TEST_F(ServerTest, ServesStopsAndServesAgain) {
  std::vector<double> told;
  options_.progress = [&](std::string_view task, double fraction) {
    EXPECT_EQ(task, "loading model");
    told.push_back(fraction);
  };
  Server server(options_);
  ASSERT_FALSE(server.running());
  std::string first;
  for (int life = 0; life < 2; ++life) {
    const Status started = server.start();
    ASSERT_TRUE(started) << started.error().message;
    ASSERT_TRUE(server.running());
    EXPECT_FALSE(server.start()) << "it runs already";
    const int port = server.port();
    EXPECT_EQ(ask(port, "/health/ready").status, 200);
    EXPECT_EQ(ask(port, "/v1/models").body.at("data").at(0).at("id"), "tiny");
    const std::string text = text_of(complete(port, 32));
    EXPECT_FALSE(text.empty());
    if (life == 0) first = text;
    EXPECT_EQ(text, first);  // what the first life learned changes no token
    EXPECT_EQ(ask(port, "/v1/speculator").status, 200);
    server.stop(10);
    EXPECT_FALSE(server.running());
    EXPECT_EQ(ask(port, "/health/live").status, 0) << "nobody listens any more";
  }
  ASSERT_FALSE(told.empty());
  EXPECT_GT(told.back(), 0.9);
  // The traffic of the first life was kept for the second.
  bool kept = false;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(options_.state_dir))
    kept |= entry.path().filename() == "shared.store";
  EXPECT_TRUE(kept);
}

TEST_F(ServerTest, AnErrorNamesWhatIsWrongAndTheNextStartMayWork) {
  const std::string model = std::exchange(options_.model, "");
  EXPECT_THAT(Server(options_).start().error().message, HasSubstr("--model"));
  options_.model = folder_.file("absent.gguf");
  EXPECT_THAT(Server(options_).start().error().message, HasSubstr("absent.gguf"));
  options_.model = model;
  options_.traces_endpoint = "ipc:///tmp/alone";
  EXPECT_THAT(Server(options_).start().error().message, HasSubstr("--weights-endpoint"));
  options_.traces_endpoint.clear();

  Server first(options_);
  ASSERT_TRUE(first.start());
  options_.http.port = first.port();
  options_.state_dir = folder_.file("another");
  Server second(options_);
  EXPECT_FALSE(second.start()) << "the port is in use";
  EXPECT_FALSE(second.running());
  first.stop();
  const Status started = second.start();
  ASSERT_TRUE(started) << started.error().message;
  EXPECT_FALSE(text_of(complete(second.port(), 8)).empty());
}

TEST_F(ServerTest, StopLetsOpenRequestsFinishOrCutsThem) {
  Server server(options_);
  for (const bool waits : {true, false}) {
    ASSERT_TRUE(server.start());
    Answer answer;
    std::thread client([&, port = server.port()] { answer = complete(port, 1500); });
    const auto late = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!server.engine().serving() && std::chrono::steady_clock::now() < late)
      std::this_thread::yield();
    EXPECT_TRUE(server.engine().serving());
    int asked = 0;
    server.stop(waits ? 300 : 0, [&] { return ++asked < 0; });
    client.join();
    if (waits) {
      ASSERT_EQ(answer.status, 200);
      EXPECT_EQ(answer.body.at("usage").at("completion_tokens"), 1500);
      EXPECT_GT(asked, 0);
    } else {
      EXPECT_NE(answer.status, 200);
    }
  }
}

// The program under tests/embedding, as its user runs it.
TEST_F(ServerTest, AProgramEmbedsOne) {
  const std::string command = std::string(FORETOKEN_EMBED_PROGRAM) + " " + options_.model + " " +
                              options_.state_dir + " abcabc 2>" + folder_.file("log");
  FILE* out = popen(command.c_str(), "r");
  ASSERT_TRUE(out);
  std::string text;
  char buffer[4096];
  while (const std::size_t n = fread(buffer, 1, sizeof buffer, out)) text.append(buffer, n);
  EXPECT_EQ(pclose(out), 0);
  EXPECT_THAT(text, HasSubstr("200 {"));  // the log may be on the same stream
  EXPECT_THAT(text, HasSubstr("\"completion_tokens\":"));
}

}  // namespace
}  // namespace foretoken
